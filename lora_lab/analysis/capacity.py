"""How much an adapter can hold against how much its data has to say.

Source: Schulman & Thinking Machines Lab, "LoRA Without Regret" (2025).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from lora_lab import spectra
from lora_lab._util.files import user_path
from lora_lab._util.json_files import fitted, parse_json
from lora_lab.errors import AdapterError, RunError, as_cause
from lora_lab.runs.history import read_history
from lora_lab.runs.metrics import METRICS_FILE, pieces
from lora_lab.runs.records import find_run
from lora_lab.runs.schema import Count, Whole


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
    folder = user_path(run_folder, RunError).resolve()
    parameters = sum(site.trainable for site in read_history(folder).sites)
    epoch = _steps_of_an_epoch(folder)
    rows = [] if epoch is None else list(_metrics(folder, epoch))
    if epoch is None or not rows or not all("tokens" in row for row in rows):
        return capacity(parameters)
    # The last step goes on with the next round: only its share of the first one counts.
    shares = [min(1.0, epoch - (row["step"] - 1)) for row in rows]
    tokens = [round(row["tokens"] * share) for row, share in zip(rows, shares, strict=True)]
    return capacity(parameters, [row["loss"] for row in rows], tokens)


class _Row(TypedDict):
    step: Count
    loss: float


class _CountedRow(_Row, total=False):
    tokens: Whole


def _steps_of_an_epoch(folder: Path) -> float | None:
    """Return how many optimizer steps see all examples once; None where the run did not note it."""
    record = find_run(folder)
    try:
        if (examples := record.config["task"].get("examples")) is None:
            return None
        training = record.config["training"]
        batch = training["per_device_train_batch_size"] * training["gradient_accumulation_steps"]
        if batch < 1:
            raise KeyError("batch")
    except KeyError as error:
        why = record.problem or f"it tells of no {error}"
        raise RunError(
            f"cannot read {folder / 'config.json'}: {why}; copy the run's folder again"
        ) from as_cause(error)
    return float(examples / (batch * record.config.get("processes", 1)))


def _metrics(folder: Path, epoch: float) -> Iterator[Mapping[str, Any]]:
    """Yield the first epoch's rows of metrics.jsonl; the last line may still be being written."""
    path = folder / METRICS_FILE
    for number, line in enumerate(_lines(path), start=1):
        try:
            row: Any = parse_json(line)
            fitted(row, _CountedRow)
        except ValueError as error:
            raise RunError(
                f"{path}, line {number}: {error}; copy the run's folder again"
            ) from as_cause(error)
        if row["step"] >= epoch + 1:
            return
        yield row


def _lines(path: Path) -> Iterator[bytes]:
    try:
        for piece in pieces(path):
            yield from piece.split(b"\n")[:-1]
    except FileNotFoundError:
        return  # no step is done yet
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {path}: {error}; copy the run's folder again") from as_cause(
            error
        )
