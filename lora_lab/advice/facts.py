"""What advice is given for: the model, how much data, how long, how much memory is at hand."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from lora_lab._util.devices import devices_of
from lora_lab._util.hardware import best_device
from lora_lab._util.host_memory import available_memory
from lora_lab.anatomy.api import anatomy
from lora_lab.anatomy.types import Anatomy
from lora_lab.anatomy.wrappers import unwrapped
from lora_lab.errors import ConfigError
from lora_lab.methods.config import need_count
from lora_lab.models.given import as_loaded
from lora_lab.models.load import LoadedModel, load_outline, model_config
from lora_lab.tasks.base import Task
from lora_lab.tasks.classification import ClassificationTask
from lora_lab.tasks.encoding import IGNORED
from lora_lab.tasks.families.api import family_of
from lora_lab.tasks.families.base import NO_LIMIT
from lora_lab.tasks.families.language_modeling import LanguageModelingTask
from lora_lab.tasks.families.regression import RegressionTask
from lora_lab.tasks.load import as_task
from lora_lab.training.device_memory import memories_of
from lora_lab.training.gpu_memory import gpu_memory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Kind = Literal["prompts", "texts", "classes", "numbers"]
_SAMPLE = 200  # training examples whose labels are counted
_UNITS = {"": 3, "b": 0, "k": 1, "m": 2, "g": 3, "t": 4}  # of 1,024; a lone number is GiB
_MEMORY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:([kmgt])(?:i?b)?|(b)|)\s*", re.I)


@dataclass(frozen=True)
class Facts:
    """What advice rests on.

    Attributes:
        model: its name.
        anatomy: its matrices.
        kind: of the task: "prompts" are answered, of "texts" every token is learned.
        examples: to train on; None: not known.
        length: tokens of an example that are to be read; None: not known.
        longest: tokens of the longest one; None: not known, or the length was named.
        labels: that an example has, tokens or 1, the mean; None: not known.
        bits: what an example has to say at most, a bit a token, or that of its class; None: not
            known.
        memory: bytes that weights and training may take together; None: not known.
        where: whose memory that is.
        device: whose kernels are used, as `budget` takes it.
        dtype: of the base model, None: the model's own.
        packed: some of its weights are quantized.
    """

    model: str
    anatomy: Anatomy = field(repr=False)
    kind: Kind = "prompts"
    examples: int | None = None
    length: int | None = None
    longest: int | None = None
    labels: float | None = None
    bits: float | None = None
    memory: int | None = None
    where: str = ""
    device: str | None = None
    dtype: str | None = None
    packed: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return all but the anatomy as plain JSON."""
        return {name: value for name, value in vars(self).items() if name != "anatomy"}


def read_facts(
    model: Any,
    task: Any,
    *,
    examples: int | None,
    length: int | None,
    memory: int | str | None,
    tokenizer: PreTrainedTokenizerBase | None,
    dtype: str | None,
    device: str | None,
) -> Facts:
    """Look at a model and its data; the arguments are those of `advise`.

    Raises:
        ConfigError, ModelError, TaskError: as `advise`.
    """
    for name, count in (("examples", examples), ("length", length)):
        if count is not None:
            need_count(name, count, least=1)
    given = None if task is None else as_task(task)
    lm = _loaded(model, tokenizer, given)
    grid = _anatomy(model, lm)
    own = {} if given is None or lm is None else _of_task(lm, given, grid.shape.position_limit)
    if given is not None and examples is None:
        examples = len(given.train)
    net = _net(model, lm)
    free, where = _memory(memory, net, device)
    return Facts(
        model=_name(model, lm),
        anatomy=grid,
        kind=own.get("kind", "prompts"),
        examples=examples,
        length=min(length, grid.shape.position_limit or NO_LIMIT) if length else own.get("length"),
        longest=None if length else own.get("longest"),
        labels=own.get("labels"),
        bits=own.get("bits"),
        memory=free,
        where=where,
        device=device or (None if net is None else str(devices_of(net)[0])),
        dtype=dtype,
        packed=bool(grid.packed),
    )


def bytes_of(memory: int | str) -> int:
    """Return the bytes of "16 GB"; units are binary, as nvidia-smi counts, and a number is bytes.

    Raises:
        ConfigError: it is no such text, or no positive number.
    """
    if isinstance(memory, str):
        found = _MEMORY.fullmatch(memory)
        unit = "" if found is None else found[2] or found[3] or ""
        count = 0 if found is None else int(float(found[1]) * 1024 ** _UNITS[unit.lower()])
        if count < 1:
            raise ConfigError(f"memory is {memory!r}; say how much, such as '16 GB' or '900 MB'")
        return count
    need_count("memory", memory, least=1)
    return memory


def _loaded(model: Any, tokenizer: Any, task: Task | None) -> LoadedModel | None:
    """Return the model with its tokenizer, without weights where a name was given."""
    if isinstance(model, (str, Path)):
        return None if task is None else load_outline(model)
    if isinstance(model, Anatomy):
        if task is not None:
            raise ConfigError("an anatomy has no tokenizer for the task; give the model's name")
        return None
    call = "ll.advise(model, task, tokenizer=tokenizer)"
    needs_no_tokenizer = task is None and not isinstance(model, LoadedModel) and tokenizer is None
    return None if needs_no_tokenizer else as_loaded(model, tokenizer, {}, call)


def _anatomy(model: Any, lm: LoadedModel | None) -> Anatomy:
    if isinstance(model, Anatomy):
        return model
    if lm is not None:
        return anatomy(lm.model)
    return anatomy(model_config(model) if isinstance(model, (str, Path)) else model)


def _of_task(lm: LoadedModel, task: Task, positions: int | None) -> dict[str, Any]:
    """Return kind, lengths, labels and bits of a task's training examples."""
    kinds: Mapping[type, Kind] = {
        ClassificationTask: "classes",
        RegressionTask: "numbers",
        LanguageModelingTask: "texts",
    }
    kind = next((name for type_, name in kinds.items() if isinstance(task, type_)), "prompts")
    look = task.look(lm, max_length=NO_LIMIT)
    sample = task.train[:_SAMPLE]
    family = family_of(task, lm)
    reader = family(lm, task, min(NO_LIMIT, family.room(lm)))
    encoded = [example for example in reader.encode_each(sample) if example]
    labels = 1.0
    if encoded and isinstance(encoded[0]["labels"], (list, tuple)):
        labels = statistics.fmean(sum(n != IGNORED for n in e["labels"]) for e in encoded)
    bits = math.log2(max(2, len(task.labels))) if isinstance(task, ClassificationTask) else labels
    longest, usual = look.would_do, look.percentile(99)
    # The longest sets the memory: a few of more than twice the others' length are cut.
    length = min(longest if longest <= 2 * usual else usual, positions or NO_LIMIT)
    return {"kind": kind, "length": length, "longest": longest, "labels": labels, "bits": bits}


def _memory(
    memory: int | str | None, net: nn.Module | None, device: str | None
) -> tuple[int | None, str]:
    """Return what weights and training may take, and whose memory it is."""
    if memory is not None:
        return bytes_of(memory), "the memory that was named"
    if device is not None and device.partition(":")[0] != "cpu":
        return None, ""  # a GPU that need not be here
    if net is not None:
        held = sum(p.nbytes for p in net.parameters())
        if memories := memories_of(net):
            return sum(one.free for one in memories.values()) + held, "free on the GPU"
        free = available_memory()
        return None if free is None else free + held, "available on this computer"
    here = torch.device("cpu") if device else best_device()
    if (gpu := gpu_memory(here)) is not None:
        return gpu.free, "free on the GPU"
    return available_memory(), "available on this computer"


def _net(model: Any, lm: LoadedModel | None) -> nn.Module | None:
    """Return the model with its weights, where they are here."""
    net = unwrapped(lm.model if lm else model)
    here = isinstance(net, nn.Module) and all(d.type != "meta" for d in devices_of(net))
    return net if here else None


def _name(model: Any, lm: LoadedModel | None) -> str:
    if lm is not None:
        return lm.card.name
    return str(model) if isinstance(model, (str, Path)) else "the model"
