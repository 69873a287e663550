"""(IA)³: outputs and inputs of layers are scaled by learned numbers (Liu et al., 2022)."""
