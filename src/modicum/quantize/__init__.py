"""Quantization: weights on a grid of few values, and what is done so that they land well."""
