"""LoRA's parts: A and B at one site, the layers they hang below, how they start and are summed."""
