"""AdaLoRA: ΔW = s·PΛQ whose weakest triplets are cut while it is trained (Zhang et al., 2023).

`train` needs no call from the user: scores and cuts come from hooks on the optimizer. After the
last cut the triplets that are left, and their moments in the optimizer, are gathered into smaller
tensors. A loop of one's own calls `begin_training` once and adds `penalty` to its loss; without the
first nothing is ever cut, and merging and saving say so:

    adapter = ll.attach(model, ll.AdaLoraConfig(...))
    adapter.begin_training(optimizer, total_steps)
    for batch in batches:
        (model(**batch).loss + adapter.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()

With A = Q and B = PΛ it is LoRA for everything else: the operator, spectra, files.

s is α/init_r all along, however many triplets are left. The authors' is α/(init_r + 1e-5).
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lora_lab.errors import AdapterError
from lora_lab.methods.adalora.config import AdaLoraConfig
from lora_lab.methods.adalora.rank_allocator import RankAllocator, Scores, strongest, triplet_scores
from lora_lab.methods.adalora.shrink_optimizer import replace_parameters
from lora_lab.methods.adalora.triplets import AdaLoraSite, mean_deviation
from lora_lab.methods.base import Active
from lora_lab.methods.lora.adapter import LoraAdapter
from lora_lab.methods.lora.factors import LoraSite
from lora_lab.methods.lora.targets import TargetSpec


class AdaLoraAdapter(LoraAdapter):
    """AdaLoRA's triplets of a model under one name.

    Attributes:
        config: the `AdaLoraConfig` it was made from.
        step: optimizer steps that it has heard of.
        final: the last cut is done, and what it left gathered.
    """

    method = "AdaLoRA"

    def __init__(self, model: nn.Module, config: AdaLoraConfig, name: str) -> None:
        super().__init__(model, config.at_start(), name)
        self.config = config
        self.step = 0
        self.final = False
        self._scores: Scores | None = None
        self._budget: RankAllocator | None = None
        self._optimizer: weakref.ref[Optimizer] | None = None
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._stepping = False

    def make_site(self, planned: TargetSpec, W: Tensor, _activations: Tensor | None) -> LoraSite:
        """Return the triplets of one site at their start."""
        AdaLoraConfig.check_kind(planned.site.module, planned.site.kind)
        return AdaLoraSite(planned, self.lora, W)

    def insert(self, active: Active) -> None:
        """Add the triplets below their layers, and hear of the optimizer again after a merge."""
        super().insert(active)
        self._listen()

    def remove(self) -> None:
        """Take the triplets off their layers, and the hooks off the optimizer."""
        super().remove()
        self._cease()

    def warning(self) -> str | None:
        """Return that it was trained and never cut, where it was."""
        if self.step or not any(site.lambdas.any() for site in self._own.values()):
            return None
        return (
            f"adapter {self.name!r} was trained without AdaLoRA's cuts: every rank is init_r "
            f"{self.config.init_r} still; call adapter.begin_training(optimizer, total_steps) "
            "before a training loop of your own"
        )

    # What it learns -------------------------------------------------------------------------------

    @property
    def ranks(self) -> dict[str, int]:
        """{site name: triplets that the last cut spared}."""
        return {name: sum(site.kept) for name, site in self._own.items()}

    def parameters_by_location(self) -> dict[str, list[nn.Parameter]]:
        """Return {site name: [λ]} where triplets are left.

        The penalty moves P and Q everywhere; that the loss reaches a site shows in λ alone.
        """
        return {name: [site.lambdas] for name, site in self._own.items() if site.r}

    def fast_parameters(self) -> Iterator[nn.Parameter]:
        """Yield P and λ, which make up B."""
        for site in self._own.values():
            yield from (p for p in (site.P, site.lambdas) if p.requires_grad)

    def snapshot(self) -> list[Tensor]:
        """Return copies of all triplets, and which are kept: equally many tensors at any step."""
        found = []
        for site in self._own.values():
            found += [p.detach().to("cpu", copy=True) for p in site.triplets]
            found.append(torch.tensor(site.kept, dtype=torch.bool))
        return found + [p.detach().to("cpu", copy=True) for p in self.saved.parameters()]

    def restore(self, values: Sequence[Tensor]) -> None:
        """Put back what `snapshot` returned, also from before triplets were dropped.

        To go on training from there, take `training_state`.
        """
        left = iter(values)
        for site in self._own.values():
            P, lambdas, Q, kept = islice(left, 4)
            site.replace(P, lambdas, Q, kept.tolist())
        with torch.no_grad():
            for parameter, value in zip(self.saved.parameters(), left, strict=True):
                parameter.copy_(value)

    # While it is trained --------------------------------------------------------------------------

    def begin_training(self, optimizer: Optimizer, total_steps: int) -> None:
        """Score and cut at every step of an optimizer from now on; of an earlier one no more.

        Raises:
            ConfigError: the schedule does not fit so many steps.
        """
        config = self.config
        config.check_steps(total_steps)
        self._cease()
        self._budget = RankAllocator(
            first=sum(site.first_rank for site in self._own.values()),
            last=sum(min(config.target_r, site.first_rank) for site in self._own.values()),
            tinit=config.tinit,
            tfinal=config.tfinal,
            deltaT=config.deltaT,
            total=total_steps,
        )
        self._optimizer = weakref.ref(optimizer)
        self._listen()

    def pending_schedule(self) -> str | None:
        """Return how far the ranks have come, before the last cut."""
        if self._budget is None or self.final:
            return None
        mean = sum(self.ranks.values()) / len(self.sites)
        return (
            f"AdaLoRA's ranks are {mean:.1f} in the mean still, on the way to "
            f"{self.config.target_r:.1f}: the last cut comes after step {self._budget.final_step}"
        )

    def penalty(self) -> Tensor | None:
        """Return γ times the mean of ‖PᵀP − I‖_F and ‖QQᵀ − I‖_F over all P and Q with triplets.

        The paper has γ·Σ of the squared norms. The γ that it publishes (0.1 to 0.5, Table 8) are
        for its authors' code, which PEFT has too: norms not squared, and their mean. With 72
        matrices of rank 12 the printed sum begins near 800, and γ = 0.1 would drown the task's
        loss; the mean begins near 2.4.
        """
        matrices = [M for site in self._own.values() if site.r for M in (site.P.mT, site.Q)]
        if not self.config.orth_reg_weight or not matrices:
            return None
        with torch.autocast(matrices[0].device.type, enabled=False):
            return self.config.orth_reg_weight * mean_deviation(matrices)

    def training_state(self) -> dict[str, Any]:
        """Return step, triplets and scores, which the saved LoRA cannot hold."""
        scores = self._scores
        return {
            "step": self.step,
            "final": self.final,
            "sites": {
                name: {
                    "triplets": [p.detach().to("cpu", copy=True) for p in site.triplets],
                    "kept": list(site.kept),
                }
                for name, site in self._own.items()
            },
            "scores": scores
            and {
                "sensitivity": [t.to("cpu", copy=True) for t in scores.sensitivity],
                "uncertainty": [t.to("cpu", copy=True) for t in scores.uncertainty],
            },
        }

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `training_state` returned. Make the optimizer afterwards.

        Raises:
            AdapterError: the state is of other sites.
        """
        sites = state["sites"]
        if sites.keys() != self.sites.keys():
            odd = min(sites.keys() ^ self.sites.keys())
            raise AdapterError(
                f"the training state is of other matrices than this adapter ({odd}); resume with "
                "the config and the model that the run was started with"
            )
        for name, site in self._own.items():
            P, _, Q = sites[name]["triplets"]
            if (P.shape[0], Q.shape[1]) != (site.P.shape[0], site.Q.shape[1]):
                raise AdapterError(
                    f"the training state has {P.shape[0]} × {Q.shape[1]} at {name} and this model "
                    f"{site.P.shape[0]} × {site.Q.shape[1]}; resume with the model that the run "
                    "was started with"
                )
        for name, site in self._own.items():
            P, lambdas, Q = sites[name]["triplets"]
            site.replace(P, lambdas, Q, sites[name]["kept"])
        self.step, self.final, self._scores = state["step"], state["final"], None
        if (scores := state["scores"]) is not None:
            weights = self._weights()
            self._scores = self._new_scores(
                *(
                    [t.to(w, copy=True) for t, w in zip(scores[kind], weights, strict=True)]
                    for kind in ("sensitivity", "uncertainty")
                )
            )

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy begins with: it hears of no optimizer, for its parameters are new."""
        return super().__getstate__() | {"_optimizer": None, "_hooks": []}

    @property
    def _own(self) -> dict[str, AdaLoraSite]:
        return cast("dict[str, AdaLoraSite]", self.sites)

    def _weights(self) -> list[Tensor]:
        return [p for site in self._own.values() for p in site.triplets]

    def _new_scores(self, *averages: list[Tensor]) -> Scores:
        return Scores(self._weights(), self.config.beta1, self.config.beta2, *averages)

    def _listen(self) -> None:
        optimizer = self._optimizer() if self._optimizer is not None else None
        if optimizer is not None and not self._hooks:
            self._stepping = False
            self._hooks = [
                optimizer.register_step_pre_hook(self._before_step),
                optimizer.register_step_post_hook(self._after_step),
            ]

    def _cease(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    # An optimizer whose step calls its parent class's runs its hooks twice: torch wraps both. Only
    # the first call before a step counts, and the first after it.

    def _before_step(self, *_: Any) -> None:
        if self._stepping:
            return
        self._stepping = True
        assert self._budget is not None
        # Without scores yet: every step before this one was skipped.
        if not self.final and (self._scores is None or self._budget.scores(self.step + 1)):
            self._scores = self._scores or self._new_scores()
            self._scores.update()

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        if not self._stepping:
            return
        self._stepping = False
        self._advance(optimizer)

    def skip_step(self, optimizer: Optimizer) -> None:
        """Go on in the schedule, whose steps are the training's; the gradients are no scores."""
        self._advance(optimizer)

    def _advance(self, optimizer: Optimizer) -> None:
        self.step += 1
        assert self._budget is not None
        if self.final or not self._budget.cuts(self.step) or self._scores is None:
            return
        self._cut(self._budget.triplets(self.step))
        if self.step >= self._budget.final_step:
            gathered = (pair for site in self._own.values() for pair in site.gather())
            replace_parameters(optimizer, dict(gathered))
            self._scores, self.final = None, True

    @torch.no_grad()
    def _cut(self, budget: int) -> None:
        """Zero λ of all triplets but the strongest. The vectors stay, so they can come back."""
        assert self._scores is not None, "a schedule leaves at least one step to score"
        each = iter(self._scores.each())
        sites = list(self._own.values())
        scores = [triplet_scores(*islice(each, 3)) for _ in sites]
        for site, kept in zip(sites, strongest(scores, budget), strict=True):
            site.kept = kept.tolist()
            site.lambdas.masked_fill_((~kept).to(site.lambdas.device, non_blocking=True), 0)
