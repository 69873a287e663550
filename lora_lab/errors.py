"""The errors that LoRA Lab raises on purpose: one line each, and the line names the fix."""

from __future__ import annotations


class LoraLabError(Exception):
    """Base of all errors that a user can fix. The command line prints it without a traceback."""


class ConfigError(LoraLabError, ValueError):
    """A setting that cannot work: unknown field, impossible rank, a target that matches nothing."""


class ModelError(LoraLabError):
    """A model that cannot be found, loaded or read."""


class AdapterError(LoraLabError):
    """An adapter that does not fit: wrong base, wrong state, a file that is not what it claims."""


class TaskError(LoraLabError):
    """Data that cannot be used: a missing file, a missing column, nothing to learn from."""


class RunError(LoraLabError):
    """A run that cannot do what was asked, or that failed while training."""
