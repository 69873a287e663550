"""Every architecture of transformers that builds in a moment: LoRA on each of its matrices.

Adapted equals merged, a gradient reaches every site that the base's own loss reaches, PEFT reads
our file and we read PEFT's, and `detach` gives back the model that there was.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn

import lora_lab as ll
from lora_lab.errors import LoraLabError
from tests.helpers.peft_files import peft_model
from tests.helpers.tiny_architectures import ARCHITECTURES, tiny_architecture
from tests.helpers.tiny_batches import tiny_batch

_MAMBA = dict.fromkeys(
    ("peft_reads", "reads_peft"),
    "PEFT refuses out_proj of models with Mamba's layers, whose fused kernels read past it",
)
_PAST = dict.fromkeys(
    ("peft_reads", "reads_peft"),
    "a weight is read and its module never called: LoRA acts there, PEFT's adapter does nothing",
)
# In a model with routed experts PEFT takes these names of modules for those, wherever they stand.
_TAKEN_FOR_EXPERTS = {"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}
# What is not clean, and why. An entry that has become clean fails the test: take it away.
NOT_CLEAN: dict[str, dict[str, str]] = {
    **dict.fromkeys(("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"), _MAMBA),
    **dict.fromkeys(("jamba", "layoutlmv3", "wavlm"), _PAST),
    "laguna": {
        "peft_reads": "PEFT does not read its own file of it either: transformers renames the key",
    },
}

TOLERANCE = 1e-4  # of the largest output; ΔW moves the outputs by several tenths


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """PEFT writes no README beside its files, which takes longer than all the rest."""
    monkeypatch.setattr(peft.PeftModel, "create_or_update_model_card", lambda *_: None)
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity_warning()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_lora_on_every_matrix(name: str, tmp_path: Path) -> None:
    model = tiny_architecture(name)
    trial = _Trial(model, tiny_batch(model), tmp_path)
    expected = NOT_CLEAN.get(name, {})
    found = trial.faults()
    assert found.keys() == expected.keys(), found or f"is clean now: {expected}"


def test_what_is_not_clean_is_an_architecture_that_is_tried() -> None:
    assert set(NOT_CLEAN) <= set(ARCHITECTURES)


class _Trial:
    """One architecture: what the checks see, by their names."""

    def __init__(self, model: nn.Module, batch: dict[str, Any], folder: Path) -> None:
        self.model, self.batch, self.folder = model, batch, folder
        self.found = ll.anatomy(model)
        sites = [s for s in self.found.sites if min(s.in_features, s.out_features) > 1]
        self.targets = sorted({s.module for s in sites if s.kind == "linear"})
        self.held = sorted(s.name for s in sites if s.kind == "experts")
        self.config = ll.LoraConfig(
            r=2,
            lora_alpha=4,
            target_modules=self.targets,
            target_parameters=self.held,
            init_lora_weights=False,
        )
        self.bare = outputs(model, batch)
        assert all(y.isfinite().all() for y in self.bare)

    def faults(self) -> dict[str, str]:
        """Return {check: what went wrong}."""
        before, reached = state_of(self.model), self._reached()
        seen = {}
        with torch.random.fork_rng():
            torch.manual_seed(1)
            try:
                adapter = ll.attach(self.model, self.config)
                self.y = backward(self.model, self.batch)
            except Exception as error:
                return {"acts": str(error)}
        seen["acts"] = "nothing moves" if distance(self.y, self.bare) < 1e-2 else ""
        seen["gradient"] = " ".join(
            name
            for name, site in adapter.factors.items()
            if f"{site.site.module}.{site.site.parameter}" in reached
            and not all(map(has_gradient, (site.A, site.B)))
        )
        self.model.zero_grad()
        for check in (self._budget, self._merged, self._saved):
            seen[check.__name__.strip("_")] = said(check)
        ll.detach(self.model)
        seen["detached"] = difference(before, state_of(self.model))
        for check in (self._loaded, self._peft_reads, self._reads_peft):
            seen[check.__name__.strip("_")] = said(check)
        if seen["peft_reads"] and not self.said:
            seen["said"] = "saving does not say that PEFT misreads the file"
        ll.detach(self.model)
        seen["detached"] = seen["detached"] or difference(before, state_of(self.model))
        return {check: what for check, what in seen.items() if what}

    def _reached(self) -> set[str]:
        """Return the names of the parameters that have a gradient in the bare model."""
        twin = copy.deepcopy(self.model).requires_grad_(True)
        backward(twin, self.batch)
        return {
            name
            for name, parameter in twin.named_parameters(remove_duplicate=False)
            if has_gradient(parameter)
        }

    def _budget(self) -> str:
        priced = ll.budget(self.found, self.config).parameters_trainable
        counted = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        return "" if priced == counted else f"{priced} are priced, {counted} trained"

    def _merged(self) -> str:
        ll.merge(self.model)
        answer = self._compared(self.model, self.y)
        ll.unmerge(self.model)
        return answer

    def _saved(self) -> str:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            ll.save_adapter(self.model, self.folder / "ours")
        self.said = any("PEFT" in str(warning.message) for warning in heard)
        return ""

    def _loaded(self) -> str:
        ll.load_adapter(self.model, self.folder / "ours")
        answer = self._compared(self.model, self.y)
        ll.detach(self.model)
        return answer

    def _peft_reads(self) -> str:
        theirs = peft_model(copy.deepcopy(self.model), self.folder / "ours")
        return self._compared(theirs.eval(), self.y)

    def _reads_peft(self) -> str:
        taken = [path for path in self.targets if self.held and _leaf(path) in _TAKEN_FOR_EXPERTS]
        config = peft.LoraConfig(
            r=2,
            lora_alpha=4,
            target_modules=[path for path in self.targets if path not in taken],
            target_parameters=[*(f"{path}.weight" for path in taken), *self.held],
            init_lora_weights=False,
        )
        with warnings.catch_warnings(), torch.random.fork_rng():
            warnings.simplefilter("ignore")
            torch.manual_seed(2)
            theirs = peft.get_peft_model(copy.deepcopy(self.model), config).eval()
            theirs.save_pretrained(self.folder / "theirs")
        ll.load_adapter(self.model, self.folder / "theirs")
        return self._compared(self.model, outputs(theirs, self.batch))

    def _compared(self, model: nn.Module, y: list[Tensor]) -> str:
        off = distance(outputs(model, self.batch), y)
        return "" if off < TOLERANCE else f"off by {off:.1e}"


def _leaf(path: str) -> str:
    return path.rpartition(".")[2]


def said(check: Any) -> str:
    """Return what a check answers, or the error that it ends in."""
    try:
        return check()
    except (LoraLabError, ValueError, TypeError, RuntimeError, UserWarning) as error:
        return f"{type(error).__name__}: {error}"


def outputs(model: nn.Module, batch: dict[str, Any]) -> list[Tensor]:
    with torch.no_grad():
        return floats(model(**batch))


def backward(model: nn.Module, batch: dict[str, Any]) -> list[Tensor]:
    """Return the outputs, after a backward pass from random weights on each of them."""
    found = floats(model(**batch))
    generator = torch.Generator().manual_seed(5)
    pulls = [(y * torch.randn(y.shape, generator=generator)).sum() for y in found]
    torch.stack([pull for pull in pulls if pull.requires_grad]).sum().backward()
    return [y.detach() for y in found]


def floats(result: Any) -> list[Tensor]:
    """Return the tensors of numbers in a model's output; the logits alone where there are some."""
    if isinstance(logits := getattr(result, "logits", None), Tensor):
        return [logits]
    if isinstance(result, Tensor):
        return [result] if result.is_floating_point() else []
    inner = result.values() if isinstance(result, dict) else result
    return [y for x in inner for y in floats(x)] if isinstance(inner, Iterable) else []


def distance(found: list[Tensor], expected: list[Tensor]) -> float:
    return max(
        float((y - z).abs().max() / z.abs().max().clamp_min(1e-12))
        for y, z in zip(found, expected, strict=True)
    )


def has_gradient(parameter: nn.Parameter | None) -> bool:
    return parameter is not None and parameter.grad is not None and bool(parameter.grad.any())


def state_of(model: nn.Module) -> dict[str, Any]:
    """Return all that `detach` must give back, by name."""
    return {
        **{f"{key} (value)": value.clone() for key, value in model.state_dict().items()},
        **{f"{key} (requires_grad)": p.requires_grad for key, p in model.named_parameters()},
        **{f"{path} (class)": (type(m), sorted(vars(m))) for path, m in model.named_modules()},
        **{
            f"{path} (hooks)": (len(m._forward_hooks), len(m._forward_pre_hooks))
            for path, m in model.named_modules()
        },
    }


def difference(before: dict[str, Any], after: dict[str, Any]) -> str:
    return " ".join(
        key
        for key in before.keys() | after.keys()
        if key not in before or key not in after or not same(before[key], after[key])
    )


def same(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) else a == b
