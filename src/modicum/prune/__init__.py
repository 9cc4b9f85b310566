"""Pruning: which weights can go, and how the others make up for them."""
