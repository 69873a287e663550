"""How the small model that ships with LoRA Lab was made; nothing of it is installed."""
