"""What a run's files hold, as far as it is read: msgspec holds whatever comes to these types.

A run may be an earlier version's, a later one's, or a stranger's. Keys that are not here are left
as they are, and none has to be there; but one that is there is of its type. Behind these readers
nobody has to expect a list where a number belongs.
"""

from __future__ import annotations

from typing import Annotated, Any, NotRequired, TypedDict

from msgspec import Meta

Whole = Annotated[int, Meta(ge=0, le=2**53)]  # what JavaScript and float64 count up to
Count = Annotated[int, Meta(ge=1, le=2**53)]
Signed = Annotated[int, Meta(ge=-(2**53), le=2**53)]
Name = Annotated[str, Meta(max_length=4096)]
Real = Annotated[float, Meta(ge=-1e300, le=1e300)]
Rate = Annotated[float, Meta(ge=0, le=1e300)]


class ModelFacts(TypedDict, total=False):
    """The base model that a run adapts."""

    name: Name
    hub_id: Name | None
    dtype: Name
    parameters: Whole


class TaskFacts(TypedDict, total=False):
    """The data that a run learns."""

    name: Name
    examples: Whole
    synthetic: bool
    loss_unit: Name
    head_parameters: Whole
    classes: list[str]


class LoraFacts(TypedDict, total=False):
    """What maps over many runs read of a LoRA config."""

    r: Count
    lora_alpha: Rate
    target_modules: str | list[str]


class TrainingFacts(TypedDict, total=False):
    """What lists and comparisons read of how a run trains; `TrainingConfig` says what can be."""

    max_steps: Signed
    per_device_train_batch_size: Signed
    gradient_accumulation_steps: Signed
    learning_rate: Real
    warmup_steps: Signed | Real
    seed: Signed


class Fingerprints(TypedDict, total=False):
    """Hashes of the base model and of the data."""

    base: Name
    data: Name


class RunFacts(TypedDict, total=False):
    """config.json: what was asked for."""

    method: Name
    model: ModelFacts
    task: TaskFacts
    lora: LoraFacts
    configs: list[dict[str, Any]]
    training: TrainingFacts
    processes: Annotated[int, Meta(ge=1, le=2**20)]
    start_from: dict[str, str | Whole | None]
    fingerprints: Fingerprints
    sources: dict[str, Any]


class Summary(TypedDict, total=False):
    """summary.json: how a run ended."""

    state: Name
    steps: Whole
    seconds: Rate
    padding: Rate
    trainable: Whole
    peak_memory: Whole
    checkpoint_bytes: Whole
    metrics: dict[str, float]
    problem: str
    repeats: bool


class SampleRow(TypedDict, total=False):
    """An entry of samples.json: a held-out prompt with its answers."""

    prompt: str
    references: list[str]
    base: str | None
    adapted: str | None


class StateSample(TypedDict):
    """A held-out prompt in a checkpoint, with its answers so far."""

    prompt: str
    references: list[str]
    base: str | None
    adapted: str | None


class State(TypedDict):
    """A checkpoint's state.pt; its tensors are held to the model when they are put back."""

    format: int
    step: Whole
    adapter: dict[str, Any]
    method: dict[Any, Any]
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    random: dict[str, Any]
    metrics: dict[str, float]
    samples: list[StateSample]
    seconds: Rate
    log_bytes: Whole
    masters: NotRequired[dict[Any, Any]]
    statistics: NotRequired[dict[str, Any]]
    loss_scale: NotRequired[dict[str, float]]
    padding: NotRequired[dict[str, Whole]]
