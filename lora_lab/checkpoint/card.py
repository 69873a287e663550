"""The model card of an adapter: the README.md that the Hugging Face hub shows and indexes.

It states what is known, and nothing else. Names come from files and people: they are escaped.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from lora_lab._util.files import new_dir, user_path
from lora_lab._util.format import format_count, format_share
from lora_lab._util.transformers_private import origin
from lora_lab.anatomy.api import anatomy
from lora_lab.anatomy.wrappers import unwrapped
from lora_lab.checkpoint.files import read_json
from lora_lab.checkpoint.markdown import escaped, is_number, number, span, table
from lora_lab.checkpoint.saving import any_adapter, write_adapter
from lora_lab.errors import AdapterError, RunError
from lora_lab.methods.base import Adapter
from lora_lab.methods.combined import to_python
from lora_lab.methods.layer_update import LayerAdapter
from lora_lab.methods.lora.adapter import LoraAdapter
from lora_lab.methods.lora.factors import LoraSite
from lora_lab.models.places import HUB_ID
from lora_lab.redaction import redacted
from lora_lab.tasks.metrics import changes, sureness

if TYPE_CHECKING:
    from lora_lab.models.load import Card

CARD_FILE = "README.md"
_LICENSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*")


class FinishedRun(Protocol):
    """A `Run` that is over, or the `RunRecord` of one."""

    @property
    def id(self) -> str:
        """Its folder's name."""

    @property
    def folder(self) -> Path:
        """Where its config.json and summary.json are."""

    @property
    def state(self) -> Any:
        """A `RunState` or a `RecordState`."""


def push_ready(
    model: nn.Module,
    folder: str | Path,
    name: str | None = None,
    *,
    run: FinishedRun | str | os.PathLike[str] | None = None,
    base: Card | None = None,
) -> Path:
    """Write a folder for the hub: the adapter as `save_adapter` writes it, and its model card.

    Args:
        model, name, run, base: see `model_card`.
        folder: new or empty.

    Returns:
        The folder.
    """
    text = model_card(model, name, run=run, base=base)
    with new_dir(folder) as place:
        write_adapter(model, place, name)
        (place / CARD_FILE).write_text(redacted(text), encoding="utf-8")
    return Path(folder)


def model_card(
    model: nn.Module,
    name: str | None = None,
    *,
    run: FinishedRun | str | os.PathLike[str] | None = None,
    base: Card | None = None,
    merged: bool = False,
) -> str:
    """Return the model card of an adapter, Markdown below YAML.

    Args:
        model: a model with an adapter.
        name: which adapter; the one in force by default.
        run: the finished run that made it, its record or its folder: adds data, training
            and metrics.
        base: what is known of the base, `load_model(…).card`; by default what the run or the
            model's config tells.
        merged: for the merged model, not the adapter alone.

    Raises:
        AdapterError: no such adapter, or a run's folder that cannot be read.
        RunError: the run is not over.
    """
    model = unwrapped(model)
    adapter = any_adapter(model, name)
    made = _made_by(run)
    trained = made.config.get("id")
    if adapter.run is not None and isinstance(trained, str) and trained != adapter.run:
        raise AdapterError(
            f"adapter {adapter.name!r} on the model is of run {adapter.run}, and not of {trained}; "
            "name that run, or load this one's adapter with load_adapter"
        )
    about = _Base.of(model, made, base)
    lora = isinstance(adapter, LoraAdapter)
    kind = "LoRA adapter" if lora else f"{escaped(adapter.method)} adapter"
    title = f"{_title(about, made)} ({'merged' if merged else kind})"
    library = "transformers" if merged else "peft" if _peft_reads(adapter) else "lora-lab"
    parts = [
        _front_matter(model, about, library, lora=lora),
        f"# {title}\n\n{_opening(adapter, about, merged)}",
        f"## Adapter\n\n{_facts(model, adapter)}\n\n{_ranks(adapter)}",
        _training(made),
        _results(made),
        _usage(model, about, library),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


@dataclass(frozen=True)
class _Made:
    """What a run tells of an adapter: config.json and summary.json as they are, unchecked."""

    config: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)

    def part(self, name: str) -> Mapping[str, Any]:
        """Return an object of the config, {} where it has none."""
        value = self.config.get(name)
        return value if isinstance(value, Mapping) else {}


def _made_by(run: FinishedRun | str | os.PathLike[str] | None) -> _Made:
    if run is None:
        return _Made()
    if not isinstance(run, (str, os.PathLike)):
        if not getattr(run.state, "final", True):
            raise RunError(f"run {run.id} is {run.state}; wait() for its end, or stop() it")
        run = run.folder
    folder = user_path(run, AdapterError)
    summary = folder / "summary.json"
    config = read_json(folder / "config.json")
    return _Made(config, read_json(summary) if summary.is_file() else {})


@dataclass(frozen=True)
class _Base:
    shown: str
    hub_id: str | None
    license: str | None

    @classmethod
    def of(cls, model: nn.Module, made: _Made, card: Card | None) -> _Base:
        known: Mapping[str, Any] = dataclasses.asdict(card) if card else made.part("model")
        path = str(origin(getattr(model, "config", None)))
        hub_id = known.get("hub_id")
        if hub_id is None and not Path(path).is_dir():
            hub_id = path
        if not (isinstance(hub_id, str) and HUB_ID.fullmatch(hub_id)):
            hub_id = None
        license_ = known.get("license")
        if not (isinstance(license_, str) and _LICENSE.fullmatch(license_)):
            license_ = None
        shown = hub_id or Path(str(known.get("name") or path)).name or type(model).__name__
        return cls(shown, hub_id, license_)


def _peft_reads(adapter: Adapter) -> bool:
    own_form = isinstance(adapter, LayerAdapter) and adapter.peft_form() is not None
    return own_form or isinstance(adapter, LoraAdapter)


def _front_matter(model: nn.Module, base: _Base, library: str, *, lora: bool) -> str:
    lines = []
    tags = ["lora", "lora-lab"] if lora else ["lora-lab"]
    if base.hub_id:
        # A path of somebody's machine is no name there, and the hub refuses it.
        lines.append(f"base_model: {json.dumps(base.hub_id)}")
        if library != "transformers":
            tags.append(f"base_model:adapter:{base.hub_id}")
    lines.append(f"library_name: {library}")
    if base.license:
        lines.append(f"license: {json.dumps(base.license.lower())}")
    if _writes_text(model):
        lines.append("pipeline_tag: text-generation")
    lines.append("tags:")
    lines += [f"- {json.dumps(tag)}" for tag in tags]
    return "\n".join(["---", *lines, "---"])


def _title(base: _Base, made: _Made) -> str:
    data = _data_name(made.part("task"))
    on = f" on {data}" if data else ""
    return escaped(base.shown.rpartition("/")[2]) + on


def _opening(adapter: Adapter, base: _Base, merged: bool) -> str:
    name = escaped(base.shown)
    shown = f"[{name}](https://huggingface.co/{base.hub_id})" if base.hub_id else name
    if not isinstance(adapter, LoraAdapter):
        return f"What {_method(adapter)} has learned on {shown}, without the base's own weights."
    what = (
        f"{shown} with a low-rank update merged into its weights"
        if merged
        else f"A low-rank update (ΔW = s·BA) of {shown}, whose own weights are unchanged"
    )
    return f"{what}; method: {_method(adapter)}."


def _method(adapter: Adapter) -> str:
    if not isinstance(adapter, LoraAdapter):
        return escaped(adapter.method)
    config = adapter.lora
    how = config.init_lora_weights
    options = {
        "rank-stabilized (s = α/√r)": config.use_rslora,
        "DoRA": config.use_dora,
        "LoRA-FA (A stays as drawn)": config.use_lorafa,
        f"started by {how}": config.init.from_base or config.init.needs_activations,
    }
    return ", ".join([adapter.method, *(text for text, on in options.items() if on)])


def _facts(model: nn.Module, adapter: Adapter) -> str:
    whole = anatomy(model).parameters
    count = adapter.trainable
    trained = f"{count:,} ({format_share(count, whole)} of {format_count(whole)})"
    facts = [("method", _method(adapter))]
    if not isinstance(adapter, LoraAdapter):
        return table(("", ""), [*facts, ("trained parameters", trained)])
    facts += [
        ("matrices", f"{len(adapter.sites):,}"),
        ("α", span([site.alpha for site in adapter.sites.values()])),
        ("dropout", f"{adapter.config.lora_dropout:g}"),
        ("trained parameters", trained),
    ]
    if saved := adapter.lora.modules_to_save:
        facts.append(("trained whole", ", ".join(map(escaped, saved))))
    return table(("", ""), facts)


def _ranks(adapter: Adapter) -> str:
    if not isinstance(adapter, LoraAdapter):
        return f"```python\n{redacted(to_python(adapter.config.parts))}\n```"
    columns: dict[str, list[LoraSite]] = {}
    for site in adapter.sites.values():
        columns.setdefault(f"{site.site.stack} {site.site.role}".strip(), []).append(site)
    rows = [
        (
            escaped(role),
            f"{len(sites):,}",
            span([s.site.layer for s in sites if s.site.layer is not None]) or "–",
            span([site.r for site in sites]),
            span([site.scale for site in sites]),
        )
        for role, sites in columns.items()
    ]
    return table(("role", "matrices", "layers", "r", "s"), rows)


def _training(made: _Made) -> str:
    task, settings = made.part("task"), made.part("training")
    if not task and not settings:
        return ""
    rows = []
    if name := _data_name(task):
        rows.append(("data", name + (" (synthetic)" if task.get("synthetic") is True else "")))
    if isinstance(framing := task.get("framing"), str):
        rows.append(("framing of prompts", escaped(framing)))
    if isinstance(old := made.part("start_from").get("run"), str):
        rows.append(("starts from", f"the adapter of run {escaped(old)}"))
    batch = _product(settings, "per_device_train_batch_size", "gradient_accumulation_steps")
    numbers = {
        "training examples": task.get("examples"),
        "steps": made.summary.get("steps"),
        "examples a step": batch,
        "learning rate": settings.get("learning_rate"),
        "longest example, tokens": settings.get("max_length"),
        "seed": settings.get("seed"),
    }
    rows += [(key, number(value)) for key, value in numbers.items() if is_number(value)]
    if is_number(share := made.summary.get("padding")):
        rows.append(("padding, of the tokens computed", f"{share:.1%}"))
    return f"## Training\n\n{table(('', ''), rows)}" if rows else ""


def _results(made: _Made) -> str:
    metrics = made.summary.get("metrics")
    if not isinstance(metrics, Mapping):
        return ""
    rows = [
        (escaped(metric.title), *("–" if value is None else number(value) for value in values))
        for metric, *values in changes(metrics)
    ]
    if not rows:
        return ""
    told = made.summary.get("evaluated")
    counts = [told.get(name) for name in ("examples", "of")] if isinstance(told, Mapping) else []
    evaluated = [count for count in counts if isinstance(count, int)]
    known = evaluated if len(evaluated) == 2 else None
    line = sureness(_pairs(made.summary.get("intervals")), known)
    more = f"\n\n{escaped(line[0].upper() + line[1:])}." if line else ""
    return f"## Results\n\n{table(('', 'base model', 'adapted'), rows)}{more}"


def _pairs(found: Any) -> dict[str, list[float]]:
    """Return what a file has of intervals, as far as they are pairs of numbers."""
    known = found.items() if isinstance(found, Mapping) else ()
    pairs = {key: own for key, own in known if isinstance(own, list) and len(own) == 2}
    return {key: own for key, own in pairs.items() if all(map(is_number, own))}


def _usage(model: nn.Module, base: _Base, library: str) -> str:
    kind = type(model).__name__
    here = json.dumps("this folder, or its name on the hub")
    source = here if library == "transformers" else json.dumps(base.hub_id or "the base model")
    lines = [f"from transformers import {kind}", "", f"model = {kind}.from_pretrained({source})"]
    if library == "peft":
        lines.insert(0, "from peft import PeftModel")
        lines.append(f"model = PeftModel.from_pretrained(model, {here})")
    elif library == "lora-lab":
        lines.insert(0, "import lora_lab as ll")
        lines.append(f"ll.load_adapter(model, {json.dumps('this folder')})")
    return "\n".join(["## Use", "", "```python", *lines, "```"])


def _writes_text(model: Any) -> bool:
    can_generate = getattr(model, "can_generate", None)
    return bool(can_generate and can_generate() and not model.config.is_encoder_decoder)


def _product(settings: Mapping[str, Any], *names: str) -> Any:
    values = [settings.get(name) for name in names]
    return math.prod(values) if all(map(is_number, values)) else None


def _data_name(task: Mapping[str, Any]) -> str:
    """Return what the data are called; of a file its name, not where it lies on a machine."""
    name = task.get("name")
    if not isinstance(name, str):
        return ""
    return escaped(name if HUB_ID.fullmatch(name) else name.replace("\\", "/").rpartition("/")[2])
