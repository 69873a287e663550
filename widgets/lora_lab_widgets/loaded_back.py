"""What was written, read again: is it the adapter that it was written from?"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lora_lab._util.format import format_bytes
from lora_lab.checkpoint.files import CONFIG_FILE
from lora_lab.checkpoint.loading import load_adapter
from lora_lab.checkpoint.loralib_models import load_loralib
from lora_lab.errors import AdapterError
from lora_lab.methods.api import detach
from lora_lab.methods.attached import activate, active, attached
from lora_lab.models.load import LoadedModel, load_model
from lora_lab.runs.training_config import TrainingConfig
from lora_lab.tasks.families.api import family_of

if TYPE_CHECKING:
    from lora_lab.checkpoint.convert import Form
    from lora_lab.methods.base import Adapter
    from lora_lab.spectra.update import LowRankUpdate
    from lora_lab.tasks.base import Task

_NAME = "lora-lab-read-back"
_TOKENS = 16  # of an answer
_CLOSE = 1e-5  # of ‖ΔW‖: factors that were stacked or rescaled are rounded anew
_MOST_BYTES = 2**30  # of a merged model that is loaded a second time
_FORMS = {
    "peft": "PEFT-format file",
    "native": "file in LoRA Lab's own format",
    "uniform": "PEFT-format file of one rank",
    "loralib": "loralib file",
    "merged": "merged model",
}


@dataclass(frozen=True)
class Probe:
    """What a model is asked, to compare its answers.

    Attributes:
        task: tells how it reads and answers.
        prompt: one text; "" where there is none to ask.
    """

    task: Task
    prompt: str


def loaded_back(
    lm: LoadedModel, name: str, form: Form, path: Path, alpha: float | None, probe: Probe
) -> str:
    """Read what was written and compare it with the adapter on the model; the model stays as it is.

    Every ΔW, or every learned tensor, is compared, and one answer; of a merged model that alone.
    Nothing may train meanwhile.

    Args:
        lm: the model, with the adapter.
        name: the adapter's.
        form: what was written.
        path: where it lies.
        alpha: of loralib's file.
        probe: what is asked.

    Returns:
        What came of it in words: "PEFT-format file, 60 matrices, same answer".

    Raises:
        AdapterError: it cannot be read, or is not the adapter that it was written from.
    """
    if form == "merged":
        return _merged_back(lm, name, path, probe)
    model = lm.model
    before = active(model)
    kind = "native" if form == "peft" and not (path / CONFIG_FILE).is_file() else form
    if form == "loralib":
        load_loralib(model, path, _NAME, lora_alpha=alpha, allow_pickle=True)  # our own
        activate(model, before)
    else:
        load_adapter(model, path, _NAME, activate=False)
    try:
        adapters = attached(model)
        count, exact = _compare(adapters[name], adapters[_NAME])
        same = _same_answers(lm, name, lm, _NAME, probe)
    finally:
        detach(model, _NAME)
    if exact and same is False:
        raise AdapterError(
            "what was read back answers otherwise than the adapter; do not rely on the file, and "
            "report it"
        )
    return ", ".join(filter(None, [_FORMS[kind], count, _SAID[same]]))


_SAID = {True: "same answer", False: "another answer, by rounding", None: ""}
_MERGED = {  # its weights are not compared
    True: "same answer",
    False: "another answer than the adapter's; try it before you rely on it",
    None: "it loads",
}


def _merged_back(lm: LoadedModel, name: str, folder: Path, probe: Probe) -> str:
    size = sum(file.stat().st_size for file in folder.iterdir())
    if size > _MOST_BYTES:
        return f"{_FORMS['merged']} of {format_bytes(size)}: too large to be loaded beside this one"
    head = probe.task.head
    again = load_model(str(folder), device=lm.card.device, dtype=lm.card.dtype, **head)
    same = _same_answers(lm, name, again, None, probe)
    return f"{_FORMS['merged']}, {_MERGED[same]}"


def _compare(ours: Adapter, theirs: Adapter) -> tuple[str, bool]:
    """Compare what two adapters have learned; return how much that is, and whether bit for bit.

    Raises:
        AdapterError: they are not the same.
    """
    if not ours.sites:
        _need_equal(ours.state(), theirs.state())
        count = len(ours.state())
        return f"{count:,} tensor{'s' * (count != 1)}", True
    here = {name: site.update for name, site in ours.sites.items() if site.r}
    there = {name: site.update for name, site in theirs.sites.items() if site.r}
    exact = True
    for site in {**here, **there}:
        far, size = _distance(here.get(site), there.get(site))
        exact &= far == 0
        if not far <= _CLOSE * size:
            raise _differs(site)
    _need_equal(_beside_factors(ours), _beside_factors(theirs))
    return f"{len(here):,} {'matrix' if len(here) == 1 else 'matrices'}", exact


def _need_equal(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> None:
    for key in {**ours, **theirs}:
        known = key in ours and key in theirs
        if not (known and torch.equal(ours[key].detach().cpu(), theirs[key].detach().cpu())):
            raise _differs(key)


def _beside_factors(adapter: Any) -> dict[str, torch.Tensor]:
    """Return what is learned beside ΔW: DoRA's lengths, B's biases, a head, token rows."""
    parts = (getattr(adapter, name, None) for name in ("saved", "tokens"))
    whole = {key: tensor for part in parts if part is not None for key, tensor in part.state()}
    of_sites = {
        f"{name}.{key}": tensor
        for name, site in adapter.sites.items()
        for key in ("magnitude", "bias")
        if site.r and (tensor := getattr(site, key, None)) is not None
    }
    return whole | of_sites


def _distance(one: LowRankUpdate | None, other: LowRankUpdate | None) -> tuple[float, float]:
    """Return ‖ΔW₁ − ΔW₂‖ and ‖ΔW₁‖, Frobenius, of factors alone, in float64."""
    parts = []
    for sign, update in ((1.0, one), (-1.0, other)):
        if update is not None:
            whole = update.joined()
            A, B = (torch.as_tensor(x).detach().cpu().double() for x in (whole.A, whole.B))
            parts.append((A, sign * whole.scale * B))
    A, B = torch.cat([a for a, _ in parts]), torch.cat([b for _, b in parts], dim=1)
    size = _norm(*parts[0]) if one is not None else 0.0
    return _norm(A, B), size


def _norm(A: torch.Tensor, B: torch.Tensor) -> float:
    """Return ‖BA‖ by the triangles of two QRs: no sum of squares whose parts cancel."""
    R_A, R_B = torch.linalg.qr(A.mT)[1], torch.linalg.qr(B)[1]
    return float(torch.linalg.matrix_norm(R_B @ R_A.mT))


def _same_answers(
    lm: LoadedModel, name: str, other: LoadedModel, other_name: str | None, probe: Probe
) -> bool | None:
    """Return whether two models answer alike; None where there is nothing to ask."""
    if not probe.prompt:
        return None
    told = []
    for one, called in ((lm, name), (other, other_name)):
        family = family_of(probe.task, one)(one, probe.task, TrainingConfig.max_length)
        with _in_force(one, called):
            told.append(family.answer(probe.prompt, _TOKENS))
    return told[0] == told[1]


@contextlib.contextmanager
def _in_force(lm: LoadedModel, name: str | None) -> Iterator[None]:
    if name is None and not attached(lm.model):
        yield
        return
    before = active(lm.model)
    activate(lm.model, name)
    try:
        yield
    finally:
        activate(lm.model, before)


def _differs(where: str) -> AdapterError:
    return AdapterError(
        f"what was read back is not what was written, at {where}; do not rely on the file, and "
        "write it anew"
    )
