"""On-disk layouts: safetensors shards, compressed-tensors, and modicum's own quantizer for transformers."""
