"""The names of the children that adapters add to a model's modules; no matrix below is a site."""

ADAPTER_CHILD = "lora"  # below a matrix that has factors
SAVED_CHILD = "lora_saved"  # below a module of which adapters train copies
LEARNED_CHILD = "lora_learned"  # below a module behind or before which something learned stands
ADDED = (ADAPTER_CHILD, SAVED_CHILD, LEARNED_CHILD)
