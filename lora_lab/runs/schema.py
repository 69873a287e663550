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


# In run files, which people write; a description follows on "it must".
Text = Annotated[str | None, Meta(description="be text")]
Number = Annotated[int | None, Meta(description="be a whole number")]
Column = Annotated[  # a table without names has numbers for its columns
    str | int | None, Meta(description="be text, or a column's number")
]
Files = Annotated[  # a task's parts may be of several files
    str | list[str] | None, Meta(description="be a file, or a list of some; its files must be text")
]
Rows = Annotated[list[str] | None, Meta(description="be a list of texts")]
Place = Annotated[str, Meta(pattern=r"\A[^\x00]*\Z")]  # no path holds a NUL
Settings = Annotated[dict[str, Any] | None, Meta(description="hold settings")]
Fields = Annotated[dict[str, Any] | None, Meta(description="hold fields")]


class ModelSettings(TypedDict, total=False):
    """What a run file hands to `load_model`."""

    name: Annotated[str, Meta(description="be a name")]
    dtype: Text
    device: Text
    labels: Rows  # of a head, which follows from the task
    num_labels: Number


class TaskSettings(TypedDict, total=False):
    """What a run file hands to `load_task`."""

    name: Files
    prompt: Column
    completion: Column
    template: Text
    text: Column
    label: Column
    target: Column
    pair: Column
    validation: Files
    test: Files
    encoding: Text
    sep: Text
    field: Text
    config_name: Text
    train: Text
    decoding: Settings
    seed: Number
    in_memory: Rows
    max_steps: Number
    batch_size: Number


class RunFile(TypedDict, total=False):
    """A run file: its model and task are held to what loaders take, configs to classes."""

    model: Any
    task: Any
    configs: Annotated[list[Any], Meta(description="be a list of methods")]
    training: Settings
    output_dir: Place | None
    name: Place | None
    start_from: Place | None


class SweepFile(TypedDict, total=False):
    """What a sweep file has beside a run file's fields; `Space` looks into them."""

    grid: Fields
    random: Fields
    samples: Any
    seed: Any
    early_stopping: Fields


class CompareFile(TypedDict, total=False):
    """What a comparison's file has beside a run file's fields; `Design` looks into them."""

    methods: Annotated[list[Any], Meta(description="be a list of methods")]
    rates: Annotated[
        list[Any] | dict[str, Any] | None,
        Meta(description="be a list of learning rates, or one of each method"),
    ]
    seeds: Any
    train_examples: Any
    budget: Any
    metric: Text


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
    """Hashes of the base model and of the data; `training.fingerprints` makes them."""

    base: Name
    body: Name
    data: Name
    held_out: Name
    task: Name


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


class Evaluated(TypedDict, total=False):
    """How many held-out examples were scored, of how many there are."""

    examples: Whole
    of: Whole


class KeptFacts(TypedDict, total=False):
    """What a run was measured on beside its task; see `training.kept`."""

    texts: Whole
    tokens: Whole
    data: Name
    examples: Whole
    of: Whole


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
    intervals: dict[str, tuple[float, float]]
    evaluated: Evaluated
    kept: KeptFacts
    best_step: Whole
    best_metric: Real
    stopped_early: bool
    problem: str
    repeats: bool


class MarkFacts(TypedDict, total=False):
    """marks.json: what people say of a run."""

    title: str
    note: str
    starred: bool


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


class BestEvaluation(TypedDict):
    """The best evaluation of a run, with what was learned then."""

    step: Whole
    value: Real
    adapter: list[Any]
    statistics: dict[str, Any]


class Evaluations(TypedDict):
    """A run's evaluations while it trains; see `training.evaluations`."""

    rows: list[dict[str, Real]]
    waited: Whole
    best: BestEvaluation | None


class KeptState(TypedDict):
    """Text that a run's base model wrote, or a fingerprint of data, and what each row cost it."""

    texts: list[list[Whole]]
    data: Name
    before: list[tuple[float, Whole]]


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
    crc32: NotRequired[bool]
    spectra_step: NotRequired[Whole | None]
    intervals: NotRequired[dict[str, tuple[float, float]]]
    masters: NotRequired[dict[Any, Any]]
    statistics: NotRequired[dict[str, Any]]
    loss_scale: NotRequired[dict[str, float]]
    padding: NotRequired[dict[str, Whole]]
    evaluations: NotRequired[Evaluations]
    kept: NotRequired[dict[str, KeptState]]
