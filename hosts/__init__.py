"""The environments that LoRA Lab is set up in: one's own, Colab's versions, the oldest ones."""
