"""The names of children that are no part of the model as it was written.

Those that adapters add to its modules: no matrix below is a site. And that of the module within a
wrapper, which is no part of any name in a file.
"""

import re

ADAPTER_CHILD = "lora"  # below a matrix that has factors
SAVED_CHILD = "lora_saved"  # below a module of which adapters train copies
LEARNED_CHILD = "lora_learned"  # below a module behind or before which something learned stands
ADDED = (ADAPTER_CHILD, SAVED_CHILD, LEARNED_CHILD)

# Within torch.compile's, and within torch's checkpoint_wrapper.
WRAPPED = ("_orig_mod", "_checkpoint_wrapped_module")
_IN_FILES = (*WRAPPED, "_fsdp_wrapped_module")  # no model of which is adapted, but files are read
_IN_NAMES = re.compile(rf"(?<!\w)(?:{'|'.join(_IN_FILES)})\\?\.")


def without_wrappers(text: str) -> str:
    """Return a name, or a pattern of names, without what wrappers have written into it."""
    return _IN_NAMES.sub("", text)
