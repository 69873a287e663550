"""Adapter layers (H, L, P, D): a bottleneck behind a block's modules."""
