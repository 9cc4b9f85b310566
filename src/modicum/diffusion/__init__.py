"""Methods for diffusion models: fewer blocks, fewer steps."""
