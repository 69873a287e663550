"""A sweep on a Ray cluster: Ray Tune hands the cells out, and starts again what a node lost.

Every worker loads model and task by name, and writes to the sweep's folder, which all of them must
see. A cell whose worker was lost goes on from its last checkpoint on another; what is in
cells.jsonl is not trained again.
"""

from __future__ import annotations

import functools
import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lora_lab.errors import ConfigError, RunError, as_cause
from lora_lab.sweeps.asha import AshaConfig
from lora_lab.sweeps.cell_run import train_cell
from lora_lab.sweeps.cells import Cell
from lora_lab.sweeps.local import told
from lora_lab.sweeps.store import CellResult, SweepStore

if TYPE_CHECKING:
    from lora_lab.models.load import LoadedModel
    from lora_lab.tasks.base import Task

_LOOKS = 0.5  # seconds between two looks at a cell that another process trains
_STARTS = 3  # tries to start a cluster here
_SLOW = "a busy machine is given longer by RAY_raylet_start_wait_time_s=120 in the environment; "
_AGAIN = "the same call goes on with what has not ended"
_RETRIES = 5  # lost workers a cell survives


class CellPlan(Protocol):
    """Cells, and by what names a worker loads what they train on."""

    @property
    def folder(self) -> Path:
        """Where the files go; every worker sees it."""
        ...

    @property
    def asha(self) -> AshaConfig | None:
        """The rule of early stopping."""
        ...

    def cells(self) -> tuple[Cell, ...]:
        """Return what is to be trained."""
        ...

    def load(self) -> tuple[LoadedModel, Task]:
        """Load model and data."""
        ...


def sweep_on_ray(
    plan: CellPlan, address: str | None = None, gpus: float | None = None
) -> dict[str, CellResult]:
    """Train what has not been trained yet, side by side; returns {cell: how it ended}.

    Args:
        plan: model, task and cells.
        address: of a running cluster, such as "auto"; None: what `ray.init` finds or starts.
        gpus: that each cell takes; None: one where the cluster has any, else one CPU.

    Raises:
        ConfigError: Ray is not installed.
        RunError: the cluster cannot be reached, or cells failed to end at all.
    """
    try:
        import ray
        from ray import tune
    except ImportError:
        raise ConfigError(
            'a sweep on a cluster needs Ray: pip install "lora-lab[ray]" on every node'
        ) from None
    if not ray.is_initialized():
        _connect(ray, address)
    store = SweepStore(plan.folder)
    lm, task = plan.load()  # a wrong name is told here, not by every worker
    store.begin(told(lm, task), plan.cells())
    del lm, task
    since = store.written()
    ended = store.ended()
    open_cells = [c.id for c in plan.cells() if c.id not in ended or ended[c.id].state == "failed"]
    if open_cells:
        try:
            _tune(ray, tune, plan, open_cells, since, gpus)
        except (ray.exceptions.RayError, tune.TuneError) as error:
            raise RunError(f"the Ray cluster failed: {_first_line(error)}; {_AGAIN}") from as_cause(
                error
            )
    ids = {cell.id for cell in plan.cells()}
    found = {key: result for key, result in store.ended().items() if key in ids}
    if missing := len(ids) - len(found):
        raise RunError(f"{missing} of {len(ids)} cells did not end; {_AGAIN}")
    return found


def _connect(ray: Any, address: str | None) -> None:
    """Join a cluster, or start one here; on a busy machine it may not come up the first time."""
    for left in reversed(range(_STARTS)):
        try:
            ray.init(address=address, log_to_driver=False)
            return
        except Exception as error:  # Ray's for a slow start is a bare one
            ray.shutdown()
            if left and "timed out" in str(error):
                continue
            where = f"at {address}" if address else "on this machine"
            hint = _SLOW if "timed out" in str(error) else ""
            raise RunError(
                f"no Ray cluster {where}: {_first_line(error)}; {hint}{_AGAIN}"
            ) from None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _tune(
    ray: Any,
    tune: Any,
    plan: CellPlan,
    cells: list[str],
    since: int,
    gpus: float | None,
) -> None:
    share = gpus if gpus is not None else min(1.0, ray.cluster_resources().get("GPU", 0.0))
    resources = {"cpu": 1, **({"gpu": share} if share else {})}
    trainable = functools.partial(_work, plan=plan, since=since)
    tuner = tune.Tuner(
        tune.with_resources(trainable, resources),
        param_space={"cell": tune.grid_search(cells)},
        run_config=tune.RunConfig(
            name="ray",
            storage_path=str(plan.folder),
            failure_config=tune.FailureConfig(max_failures=_RETRIES),
            verbose=0,
        ),
    )
    tuner.fit()


def _work(config: dict[str, str], plan: CellPlan, since: int) -> None:
    """Train one cell, on a worker."""
    from ray import tune

    store = SweepStore(plan.folder)
    cell = next(cell for cell in plan.cells() if cell.id == config["cell"])
    while (result := _train_one(cell, plan, store, since)) is None:
        time.sleep(_LOOKS)
    node = f"{socket.gethostname()}/{os.getpid()}"
    tune.report({"state": result.state, "node": node, **result.metrics})


def _train_one(cell: Cell, plan: CellPlan, store: SweepStore, since: int) -> CellResult | None:
    """Return how a cell ended; None where another process is at it."""
    with store.claim(cell.id) as mine:
        result = store.ended(since).get(cell.id)
        if result is not None or not mine:
            return result
        lm, task = plan.load()
        store.check(told(lm, task))  # a node may have another file under the same name
        result = train_cell(lm, task, cell, store, plan.asha)
        if result is None:
            raise RunError(f"cell {cell.id} was stopped from outside; Ray tries it again")
        store.add(result)
        return result
