"""How much an adapter can hold against how much its data has to say.

Source: Schulman & Thinking Machines Lab, "LoRA Without Regret" (2025).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_lab import spectra
from lora_lab.errors import AdapterError, RunError
from lora_lab.runs.history import read_history


@dataclass(frozen=True)
class Capacity:
    """An adapter's capacity beside its data's content, both in bits.

    Attributes:
        parameters: the trainable ones, |Θ|.
        bits: 2·|Θ|, about what so many parameters can store.
        data_bits: the first epoch's total log-loss, at most what there was to learn by heart; of
            a shorter run, what it saw. None: not known.
        tokens: the completion tokens that it was summed over. None: not known.
        used: data_bits/bits; above 1 the adapter cannot hold all of it. None: not known.
    """

    parameters: int
    bits: float
    data_bits: float | None
    tokens: int | None
    used: float | None


def capacity(
    parameters: int, losses: Sequence[float] | None = None, tokens: Sequence[int] | None = None
) -> Capacity:
    """Set an adapter's capacity against the data of its first epoch.

    Args:
        parameters: the trainable ones, counted.
        losses: (steps,) of the first epoch, in nats per token; None where they are not known.
        tokens: (steps,) how many tokens each loss is the mean of.

    Raises:
        AdapterError: no parameters, or losses that are not finite or do not match the tokens.
    """
    if parameters < 1:
        raise AdapterError("no trainable parameters, so no capacity; adapt at least one matrix")
    bits = spectra.capacity_bits(parameters)
    if losses is None or tokens is None:
        return Capacity(parameters, bits, None, None, None)
    data_bits = spectra.first_epoch_bits(losses, tokens)
    used = spectra.capacity_used(data_bits, parameters)
    return Capacity(parameters, bits, data_bits, sum(tokens), used)


def run_capacity(run_folder: str | os.PathLike[str]) -> Capacity:
    """Return a run's `capacity`, from what it wrote to its folder; it may still be training.

    The data's part is None for a run of an older LoRA Lab, which did not count tokens.

    Raises:
        RunError: no run's folder, or files that cannot be read.
        AdapterError: see `capacity`.
    """
    folder = Path(run_folder).expanduser().resolve()
    parameters = sum(site.trainable for site in read_history(folder).sites)
    epoch = _steps_of_an_epoch(_config(folder))
    rows = [row for row in _metrics(folder) if epoch is not None and row["step"] < epoch + 1]
    if epoch is None or not rows or not all("tokens" in row for row in rows):
        return capacity(parameters)
    # The last step goes on with the next round: only its share of the first one counts.
    shares = [min(1.0, epoch - (row["step"] - 1)) for row in rows]
    tokens = [round(int(row["tokens"]) * share) for row, share in zip(rows, shares, strict=True)]
    return capacity(parameters, [row["loss"] for row in rows], tokens)


def _steps_of_an_epoch(config: Mapping[str, Any]) -> float | None:
    """Return how many optimizer steps see all examples once; None where the run did not note it."""
    examples = config["task"].get("examples")
    if examples is None:
        return None
    training = config["training"]
    batch = training["per_device_train_batch_size"] * training["gradient_accumulation_steps"]
    return float(examples / (batch * config.get("processes", 1)))


def _config(folder: Path) -> Mapping[str, Any]:
    path = folder / "config.json"
    try:
        config: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        _steps_of_an_epoch(config)
    except (
        *(OSError, ValueError, KeyError, TypeError, AttributeError),
        *(ZeroDivisionError, RecursionError),
    ) as error:
        raise RunError(f"cannot read {path}: {error!r}; copy the run's folder again") from error
    return config


def _metrics(folder: Path) -> list[Mapping[str, Any]]:
    """Return the lines of metrics.jsonl; the last may be cut off while the run writes it."""
    path = folder / "metrics.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []  # no step is done yet
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {path}: {error}; copy the run's folder again") from error
    rows: list[Mapping[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            rows.append({"step": int(row["step"]), "loss": float(row["loss"]), **row})
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if number < len(lines):
                raise RunError(
                    f"{path}, line {number}: {error!r}; copy the run's folder again"
                ) from error
    return rows
