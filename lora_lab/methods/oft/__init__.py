"""OFT: what layers read is rotated by learned, block-diagonal matrices (Qiu et al., 2023)."""
