"""LoRA: ΔW = s·BA beside a frozen W₀, and its variants with the same factors."""
