"""A package, not a folder, in whose place a kernel of IPython 7 finds IPython's own `tests`."""
