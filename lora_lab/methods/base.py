"""What every method shares: the protocol that its adapters keep."""

from __future__ import annotations

import contextlib
import itertools
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from lora_lab._util.thread_own import ThreadOwn
from lora_lab.errors import AdapterError

if TYPE_CHECKING:
    from lora_lab.methods.lora.factors import LoraSite
    from lora_lab.methods.standing import Standing

AdapterNames = tuple[str | None, ...]

_counting = threading.Lock()


@dataclass
class Batch:
    """Whose the rows of a thread's batch are, within `mixed_batch`.

    Attributes:
        samples: one name a row; () where the bare base answers all of them; None: the thread is in
            no such block.
        tokens: of each of these rows, which some models lay out one below another; 0: unknown.
        places: {(names, device): where each of them stands}, of this `mixed_batch`.
    """

    samples: AdapterNames | None = None
    tokens: int = 0
    places: dict[tuple[AdapterNames, torch.device], dict[str | None, Tensor]] = field(
        default_factory=dict, compare=False
    )


@dataclass
class Active:
    """What is switched on.

    Attributes:
        name: of one adapter for all; None: the bare base model.
        mixing: how many threads are `apart`: within `mixed_batch`, or ask the bare base.
        batch: each thread's own.
    """

    name: str | None = None
    mixing: int = 0
    batch: ThreadOwn[Batch] = field(default_factory=lambda: ThreadOwn(Batch), compare=False)

    @property
    def samples(self) -> AdapterNames | None:
        """Where this thread is `apart`, one name a row of its batch, in place of `name`."""
        return self.batch.here().samples if self.mixing else None

    @contextlib.contextmanager
    def apart(self, samples: AdapterNames) -> Iterator[Batch]:
        """Have rows of this thread answered by adapters of their own in the block; yield whose.

        Args:
            samples: one name a row; () where the bare base answers all, however many.
        """
        batch = self.batch.here()
        before = batch.samples, batch.tokens
        batch.samples, batch.tokens = samples, 0
        with _counting:
            self.mixing += 1
        try:
            yield batch
        finally:
            with _counting:
                self.mixing -= 1
            batch.samples, batch.tokens = before
            batch.places.clear()

    def __getstate__(self) -> dict[str, Any]:
        """Be copied without what threads have here: it is not theirs in the copy."""
        return {**vars(self), "mixing": 0}

    def names_of(self, x: Tensor, path: str) -> AdapterNames:
        """Return the name for every row of what a module reads within `mixed_batch`.

        Raises:
            AdapterError: its rows are not the batch's, so nobody knows whose they are.
        """
        batch = self.batch.here()
        names = batch.samples or ()
        rows = x.shape[0] if x.dim() else 0
        if rows == len(names):
            return names
        if len(set(names)) == 1:
            return names[:1] * rows
        # A mixture's expert gets tokens that a router picked.
        if x.dim() == 2 and rows == len(names) * batch.tokens and "expert" not in path:
            return tuple(name for name in names for _ in range(batch.tokens))
        raise AdapterError(
            f"adapter_names has {len(names)} entries, but {path} got an input of shape "
            f"{tuple(x.shape)}, whose rows are not the batch's (a tower with a batch of its own, "
            "or experts); leave it out of target_modules, or run the samples apart"
        )

    def places_of(self, names: AdapterNames, device: torch.device) -> Mapping[str | None, Tensor]:
        """Return {name: where it stands among the names of rows, int64 on a device}.

        All of them are copied there at once, and once a `mixed_batch`: a GPU waits for each copy.
        """
        known = self.batch.here().places
        if (names, device) not in known:
            found: dict[str | None, list[int]] = {name: [] for name in names}
            for place, name in enumerate(names):
                found[name].append(place)
            with torch.inference_mode(mode=False):  # a later pass may save them for its gradient
                order = torch.tensor([*itertools.chain(*found.values())], device=device)
            parts = order.split([len(own) for own in found.values()])
            known[names, device] = dict(zip(found, parts, strict=True))
        return known[names, device]


class Adapter(ABC):
    """One adapter on one model: what a method must be able to do.

    Attributes:
        method: the paper's name, such as "LoRA".
        name: the adapter's name.
        config: what it was made from.
        sites: {site name: its factors}, where the method learns ΔW = s·BA; else empty.
        modifies_base: it works within the model's own parameters while it is active.
        stands: at which of the model's modules it acts; None until it is put in place.
        run: the id of the run that trains it, or has trained it; None of any other.
        trains: whether that run is at work on it now, for any thread but the run's own.
        at_rest: a ``with`` block in which the run rests between two steps; not for its own thread.
        per_sample: rows of one batch may have different adapters of this kind (`mixed_batch`).
    """

    method: str
    name: str
    config: Any
    stands: Standing | None = None
    run: str | None = None
    trains: Callable[[], bool] = staticmethod(lambda: False)
    at_rest: Callable[[], AbstractContextManager[object]] = staticmethod(contextlib.nullcontext)
    sites: Mapping[str, LoraSite] = MappingProxyType({})
    modifies_base: bool = False
    per_sample: ClassVar[bool] = False

    def __repr__(self) -> str:
        at = f" at {len(self.sites)} matrices" if self.sites else ""
        return f"<adapter {self.name!r}: {self.method}{at}>"

    def __getstate__(self) -> dict[str, Any]:
        """Be copied without the run that trains it: a copy is nobody's."""
        of_run = "trains", "at_rest"
        return {name: value for name, value in vars(self).items() if name not in of_run}

    # On the model ---------------------------------------------------------------------------------

    @abstractmethod
    def insert(self, active: Active) -> None:
        """Put the adapter's layers in place; the forward pass sees them while it is active."""

    @abstractmethod
    def remove(self) -> None:
        """Take the adapter's layers out again; the base weights are not touched."""

    def set_active(self, on: bool) -> None:  # noqa: B027 (most methods need do nothing)
        """Become the active adapter, or cease to be it.

        For what works within the model's own parameters; layers that are put in look at `Active`.
        """

    def acts_at(self) -> Iterable[nn.Module]:
        """Return modules of the model that have neither parameters nor hooks of it while it is off.

        Of all others it is seen that it acts there; see `Standing`.
        """
        return ()

    def base_value(self, weight: nn.Parameter) -> Tensor | None:  # noqa: ARG002
        """Return W₀ of a parameter that the adapter works within while it is active, else None."""
        return None

    @abstractmethod
    def conflicts(self) -> Iterable[str]:
        """Yield the names of what no second config of a combination may train.

        They are parameters' names, sites' names, and for what is put in, its place in words.
        """

    @abstractmethod
    def merged_weights(
        self, dtype: torch.dtype | None = None
    ) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Yield (base weight, W₀ + ΔW) one by one; see `check_merge`.

        No adapter is active meanwhile.

        Args:
            dtype: of the sum, after its one rounding; the weight's own by default.
        """

    def check_merge(self) -> None:  # noqa: B027
        """Raise `AdapterError` if it cannot merge: before any part of it has been written."""

    def warning(self) -> str | None:
        """Return what a person should know before this is saved or merged, or None."""
        return None

    def quantized_layers(self) -> dict[str, Callable[[], nn.Module]]:
        """Return what cannot be written into: {path: maker of the merged layer in floating point}.

        `merge` puts those layers in the place of the quantized ones, if it is asked to.
        """
        return {}

    # What it learns -------------------------------------------------------------------------------

    @abstractmethod
    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the trainable parameters."""

    @abstractmethod
    def parameters_by_location(self) -> Mapping[str, Sequence[nn.Parameter]]:
        """Return {place: the parameters learned there}; training has to reach every place."""

    @abstractmethod
    def state(self) -> Mapping[str, Tensor]:
        """Return {name: live tensor} of all that a file must hold; loading copies into them."""

    def base_weight(self, site_name: str) -> Tensor:
        """Return the frozen W₀ of one of the `sites`, (out, in)."""
        raise AdapterError(f"{self.method} has no matrix {site_name!r}")

    @property
    def trainable(self) -> int:
        """The number of trainable parameters, counted."""
        return sum(p.numel() for p in self.parameters())

    @property
    def ranks(self) -> dict[str, int]:
        """{site name: the rank of its ΔW}; AdaLoRA's fall while it is trained."""
        return {name: site.r for name, site in self.sites.items()}

    def fast_parameters(self) -> Iterable[nn.Parameter]:
        """Yield those that LoRA+ gives the higher learning rate: B of every site."""
        return ()

    # While it is trained --------------------------------------------------------------------------

    def begin_training(  # noqa: B027
        self, optimizer: torch.optim.Optimizer, total_steps: int
    ) -> None:
        """Hear of every step of an optimizer from now on.

        Args:
            optimizer: that the parameters are in; the adapter may register hooks on it.
            total_steps: optimizer steps of the whole training.
        """

    def skip_step(self, optimizer: torch.optim.Optimizer) -> None:  # noqa: B027
        """Hear of a step of the training in which its optimizer takes none: float16 overflowed."""

    def pending_schedule(self) -> str | None:
        """Return what a training that ended now would leave undone, in words; None: nothing."""
        return None

    def penalty(self) -> Tensor | None:
        """Return what the training loss has on top of the task's, or None."""
        return None

    def training_state(self) -> dict[str, Any]:
        """Return what a resume needs beside `state()` and the optimizer's own: plain values."""
        return {}

    def load_training_state(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Go on from what `training_state` returned."""

    def live_values(self) -> Iterator[Tensor]:
        """Yield the tensors that hold what is learned, as many at any time: for `snapshot`."""
        yield from self.parameters()

    def snapshot(self) -> list[Tensor]:
        """Return copies of all that is learned, on the CPU, whether the adapter is on or off."""
        return [tensor.detach().to("cpu", copy=True) for tensor in self.live_values()]

    def restore(self, values: Sequence[Tensor]) -> None:
        """Put back what `snapshot` returned."""
        with torch.no_grad():
            for tensor, value in zip(self.live_values(), values, strict=True):
                tensor.copy_(value)
