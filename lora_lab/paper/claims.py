"""The numbers of the running text of Hu et al. (2022), each with the formula that gives it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import lora_lab as ll
from lora_lab.methods.lora.config import LoraConfig

ClaimVerdict = Literal["exact", "roughly", "does not reproduce"]

_GB, _MB, _TB = 10**9, 10**6, 10**12
_FLOAT16 = 2


@dataclass(frozen=True)
class Claim:
    """A number of the text.

    Attributes:
        what: it is a number of.
        printed: as the paper has it.
        published, value: that number and ours, in bytes or times.
        formula: how ours is made.
        shown: ours for people.
        verdict: "roughly" where the paper itself says so and the formula gives about that much.
        note: what else is known.
    """

    what: str
    printed: str
    published: float
    formula: str
    value: float
    shown: str
    verdict: ClaimVerdict
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON."""
        return asdict(self)

    def __str__(self) -> str:
        text = f"{self.printed} {self.what}: {self.formula} = {self.shown}; {self.verdict}"
        return f"{text} ({self.note})" if self.note else text


def claims(model: str) -> tuple[Claim, ...]:
    """Return what the paper, or its authors' README, says of a catalogue model; often nothing."""
    if model == "gpt3-175b":
        return _gpt3()
    if model in _README_MB:
        return (_readme_checkpoint(model),)
    return ()


def _gpt3() -> tuple[Claim, ...]:
    plan = ll.budget("gpt3-175b", LoraConfig(r=4, target_modules=["q", "v"]))
    everything, adapter = plan.parameters_total, plan.parameters_trainable
    whole, saved = _FLOAT16 * everything, _FLOAT16 * adapter
    states = 3 * whole
    return (
        Claim(
            "checkpoint of the whole model",
            "350 GB",
            350 * _GB,
            f"2 bytes × {everything / 1e9:.1f} billion parameters in float16",
            whole,
            f"{whole / _GB:.1f} GB",
            "exact",
            "rounded; 350.5 GB with the 175,255.8M parameters of table 4",
        ),
        Claim(
            "memory of full fine-tuning",
            "1.2 TB",
            1.2 * _TB,
            "weights and Adam's two moments in float16, 6 bytes a parameter",
            states,
            f"{states / _TB:.2f} TB",
            "does not reproduce",
            "not itemised in the paper; 6.85 bytes a parameter would give it, 8 with gradients are "
            f"{4 * whole / _TB:.2f} TB, 16 in mixed precision {8 * whole / _TB:.2f} TB",
        ),
        Claim(
            "checkpoint of LoRA",
            "35 MB",
            35 * _MB,
            f"2 bytes × {adapter / 1e6:.2f} million parameters of r = 4 at W_q and W_v",
            saved,
            f"{saved / _MB:.1f} MB or {saved / 2**20:.1f} MiB",
            "roughly",
        ),
        Claim(
            "smaller checkpoint and fewer trainable parameters",
            "10,000×",
            10_000,
            f"{whole / _GB:.1f} GB / {saved / _MB:.1f} MB",
            whole / saved,
            f"{whole / saved:,.0f}×",
            "roughly",
            "10,000 is 350 GB / 35 MB; 9,285× with the parameters of table 4",
        ),
        Claim(
            "less memory",
            "3×",
            3,
            "6 bytes a parameter with Adam's moments, 2 without",
            states / whole,
            f"{states / whole:.1f}×",
            "exact",
            "weights, gradients and activations aside; 1.2 TB / 350 GB is 3.4",
        ),
    )


_README_MB = {"gpt2-medium": 1.5, "gpt2-large": 2.3}


def _readme_checkpoint(model: str) -> Claim:
    printed = _README_MB[model]
    plan = ll.budget(model, LoraConfig(r=4, target_modules=["q", "v"]))
    saved = 4 * plan.parameters_trainable
    comes_out = round(saved / 2**20, 1) == printed
    return Claim(
        "checkpoint of LoRA (the authors' README)",
        f"{printed} MB",
        printed * _MB,
        f"4 bytes × {plan.parameters_trainable:,} parameters of r = 4 at W_q and W_v",
        saved,
        f"{saved / 2**20:.1f} MiB",
        "exact" if comes_out else "does not reproduce",
        "" if comes_out else "2.3 MiB are 36 layers of width 1024, not 1280",
    )
