"""What a config means on a given model: which sites, of what rank, with what scale."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, TypeVar

from lora_lab._util.format import some
from lora_lab._util.patterns import Budget, Expression, Patterns, endings
from lora_lab.errors import ConfigError
from lora_lab.methods.lora.config import LoraConfig
from lora_lab.methods.lora.peft_fields import HEADS
from lora_lab.methods.lora.site_names import (
    all_names,
    by_ending,
    fits,
    is_named,
    names_of,
    within,
)

if TYPE_CHECKING:
    from lora_lab.anatomy.types import Anatomy, Site, Weight

Value = TypeVar("Value", int, float)

_WORTH_A_WORD = 0.01  # the share of a model's weights that "all-linear" may pass over in silence


@dataclass(frozen=True)
class TargetSpec:
    """One site with the numbers that a config gives it: ΔW = scale·BA of rank r."""

    site: Site
    r: int
    alpha: float
    scale: float
    learns_A: bool = True  # noqa: N815  # not with LoRA-FA
    has_magnitude: bool = False  # with DoRA

    @property
    def parameters(self) -> int:
        """Trainable parameters: A is (r, in), B is (out, r), DoRA's magnitude is (out,)."""
        d, k = self.site.out_features, self.site.in_features
        return self.site.experts * self.r * (d + k * self.learns_A) + d * self.has_magnitude


def resolve_targets(anatomy: Anatomy, config: LoraConfig) -> tuple[TargetSpec, ...]:
    """Resolve a config against a model, in the anatomy's order.

    Among "all-linear" a matrix too thin for r gets min(out, in), and α so that s stays the same.

    Raises:
        ConfigError: when a target or a pattern matches nothing (it lists what would have), or a
            rank exceeds min(out, in) of a site that was named.
    """
    modules = config.target_modules
    if config.ensure_weight_tying and not isinstance(modules, str):
        modules = tuple(map(anatomy.first_end, modules))
    chosen = {*within(select(anatomy, modules), config)} if modules else set()
    chosen |= {*select_parameters(anatomy, config.target_parameters)}
    sites = [site for site in (*anatomy.sites, *anatomy.others) if site in chosen]
    ranks = _by_pattern("rank_pattern", config.rank_pattern, sites, config.r)
    alphas = _by_pattern("alpha_pattern", config.alpha_pattern, sites, float(config.lora_alpha))
    limits = [min(site.in_features, site.out_features) for site in sites]
    thin_ones_yield = is_all_linear(config.target_modules) and config.r <= max(limits, default=0)
    specs = []
    for site, limit, r, alpha in zip(sites, limits, ranks, alphas, strict=True):
        scale = config.scale(r, alpha)
        if r > limit:
            if not thin_ones_yield or r != config.r:
                raise ConfigError(
                    f"rank {r} at {site.name} ({site.out_features} × {site.in_features}) is above "
                    f"min(out, in); use at most {limit}"
                )
            r, alpha = limit, scale / config.scale(limit, 1)
        specs.append(TargetSpec(site, r, alpha, scale, not config.use_lorafa, config.use_dora))
    return tuple(specs)


def is_all_linear(targets: Sequence[str] | str) -> bool:
    """Whether `target_modules` is PEFT's word for every linear layer."""
    return isinstance(targets, str) and targets.lower() == "all-linear"


def all_linear_notes(anatomy: Anatomy, config: LoraConfig) -> tuple[str, ...]:
    """Return where "all-linear" is less than every linear layer at rank r; () where it is that."""
    if not is_all_linear(config.target_modules):
        return ()
    asked = Patterns("rank_pattern", config.rank_pattern, ConfigError)
    thin = [
        p
        for p in resolve_targets(anatomy, config)
        if p.r < asked.lookup_any(names_of(p.site), config.r)
    ]
    notes = []
    if thin:
        names = some(f"{p.r} at {p.site.name}" for p in thin)
        notes.append(f"r = {config.r} is above min(out, in) of some layers; the rank is {names}")
    whole = {*(config.modules_to_save or ()), *HEADS.get(config.task_type or "", ())}
    if heads := [head for head in anatomy.heads if head not in whole]:
        notes.append(
            f'"all-linear" leaves the head alone ({some(heads)}); to train it whole name it in '
            "modules_to_save"
        )
    known = {site.module for site in _modules(anatomy)} | anatomy.tied.keys()
    reached = {site.name for site in select_parameters(anatomy, config.target_parameters)}
    beyond = [
        weight
        for weight in anatomy.weights
        if _is_matrix(weight) and weight.name.rpartition(".")[0] not in known
        if weight.name not in reached
    ]
    share = sum(weight.size for weight in beyond) / max(anatomy.parameters, 1)
    if anatomy.left_out or share >= _WORTH_A_WORD:
        others = [w.name for w in beyond if w.name.rpartition(".")[0] not in anatomy.left_out]
        names = some([*anatomy.left_out, *others])
        held = some(dict.fromkeys(s.role for s in anatomy.sites if s.kind == "experts"))
        notes.append(
            f'"all-linear" does not reach {share:.1%} of the model\'s weights, which no plain '
            f"linear layer holds: {names}"
            + (f"; of these target_parameters names experts: {held}" if held else "")
        )
    return tuple(notes)


def select(
    anatomy: Anatomy,
    targets: Sequence[str] | str,
    field: str = "target_modules",
    budget: Budget | None = None,
) -> tuple[Site, ...]:
    """Return the sites that `target_modules` names, in the anatomy's order.

    A list entry is a role, a site's name, or the end of a module's path (PEFT's rule); a string
    is "all-linear", such an entry, or a regular expression for the whole path. Embeddings and
    convolutions are found by name, as is an output layer with a weight of its own, and are not
    among "all-linear"; nor is a classifier's head, which is trained whole.

    Args:
        anatomy: the model's sites.
        targets: as the config has them.
        field: the config's, for what is said of an expression.
        budget: of all that is matched for the config.
    """
    every = _modules(anatomy)
    named = by_ending(every)
    if isinstance(targets, str):
        if is_all_linear(targets):
            heads = tuple(f"{head}." for head in anatomy.heads)
            linear = (s for s in anatomy.sites if s.kind == "linear")
            found = tuple(s for s in linear if not f"{s.module}.".startswith(heads))
            if not found:
                others = some(weight.name for weight in anatomy.weights if _is_matrix(weight))
                raise ConfigError(
                    f'"all-linear" finds no linear layer in this model; its matrices are '
                    f"{others or 'none'}, of which others are named in target_modules"
                )
            return found
        if targets not in named:
            pattern = Expression(field, targets, ConfigError, budget)
            found = tuple(site for site in every if fits(pattern, site))
            if not found:
                _nothing(anatomy, targets)
            return found
        targets = [targets]
    chosen: set[str] = set()
    for target in dict.fromkeys(targets):
        if target not in named:
            _nothing(anatomy, target)
        chosen |= named[target]
    return tuple(site for site in every if site.name in chosen)


def select_parameters(anatomy: Anatomy, names: Sequence[str]) -> tuple[Site, ...]:
    """Return the sites that `target_parameters` names: by the end of the parameter's name.

    The weight of a linear layer ("q_proj.weight") is that layer's site.
    """
    known = {f"{s.module}.{s.parameter}": s for s in (*anatomy.sites, *anatomy.others)}
    named: dict[str, list[Site]] = defaultdict(list)
    for key, site in known.items():
        for end in endings(key):
            named[end].append(site)
    found: dict[str, Site] = {}
    for name in dict.fromkeys(names):
        own = named.get(name, ())
        if not own:
            held = dict.fromkeys(
                ".".join(key.split(".")[-2:]) for key in anatomy.parameters_by_name
            )
            raise ConfigError(
                f"target_parameters entry {name!r} matches nothing in this model; parameters that "
                f"are no linear layer's are {some(held, 12) or 'none'}"
            )
        if own[0].rows is not None:
            raise ConfigError(
                f"target_parameters entry {name!r}: {own[0].module} is a fused layer; name it in "
                "target_modules"
            )
        found |= {site.name: site for site in own}
    return tuple(found.values())


def _modules(anatomy: Anatomy) -> list[Site]:
    """Return the sites that `target_modules` may name."""
    held = anatomy.parameters_by_name
    return [site for site in (*anatomy.sites, *anatomy.others) if site.name not in held]


def ranks(anatomy: Anatomy, config: LoraConfig) -> dict[str, int]:
    """Return {site name: rank} as the grid shows it."""
    return {p.site.name: p.r for p in resolve_targets(anatomy, config)}


def common_rank(ranks: Mapping[str, int]) -> int:
    """Return the rank that most sites have; 1 where none has one."""
    counted = Counter(r for r in ranks.values() if r)
    return counted.most_common(1)[0][0] if counted else 1


def config_from_ranks(
    anatomy: Anatomy, ranks: Mapping[str, int], template: LoraConfig | None = None
) -> LoraConfig:
    """Return the shortest config that gives these ranks: the inverse of `ranks`.

    A role is named once where the whole column is painted; else the sites are named in full.

    Args:
        anatomy: the model's sites.
        ranks: {site name: rank}; a rank of 0 leaves the site out.
        template: where α, dropout and the other fields come from.
    """
    painted = {name: r for name, r in ranks.items() if r}
    if not painted:
        raise ConfigError("no rank is painted; give at least one matrix a rank")
    if unknown := painted.keys() - anatomy.by_name.keys():
        raise ConfigError(f"no matrix is called {min(unknown)!r}; see anatomy(model).sites")
    template = template or LoraConfig()
    columns: dict[str, list[Site]] = {}
    for site in (*anatomy.sites, *anatomy.others):
        columns.setdefault(site.role, []).append(site)

    common = common_rank(painted)
    targets: list[str] = []
    held: list[str] = []
    pattern: dict[str, int] = {}
    for role, column in columns.items():
        values = {painted.get(site.name, 0) for site in column}
        # "q" also names every path that ends in ".q" (T5's cross-attention): then spell it out.
        whole = 0 not in values and set(_of_role(anatomy, column[0])) == set(column)
        here = [site for site in column if site.name in painted]
        named = held if column[0].kind in ("experts", "parameter") else targets
        named += [role] if whole and here else [site.name for site in here]
        if whole and len(values) == 1 and values != {common}:
            pattern[role] = values.pop()
        else:
            pattern |= {full(s.name): painted[s.name] for s in here if painted[s.name] != common}
    # Of the template's α only what still meets a target: a pattern that matches nothing is refused.
    sites = [anatomy.by_name[name] for name in painted]
    given = template.alpha_pattern
    matching = Patterns("alpha_pattern", given, ConfigError).matching(all_names(sites))
    alphas = {key: a for number, (key, a) in enumerate(given.items()) if number in matching}
    return template.replace(
        r=common,
        target_modules=tuple(targets),
        target_parameters=tuple(held),
        rank_pattern=pattern,
        alpha_pattern=alphas,
        **dict.fromkeys(("exclude_modules", "layers_to_transform", "layers_pattern")),
    )


def _of_role(anatomy: Anatomy, site: Site) -> tuple[Site, ...]:
    """Return the sites that a site's role names as a target."""
    if site.kind in ("experts", "parameter"):
        return select_parameters(anatomy, [site.role])
    return select(anatomy, [site.role])


def full(name: str) -> str:
    """Return the pattern that matches this one path and no other that ends like it."""
    return "^" + re.escape(name)


def _is_matrix(weight: Weight) -> bool:
    """Whether a tensor may be what vectors are multiplied by: no table, no scan's or norm's."""
    table = re.search("embed|token|position|bias|A_log", weight.name.rpartition(".")[2])
    return len(weight.shape) > 1 and min(weight.shape[-2:]) > 1 and table is None


def _by_pattern(
    field: str, pattern: Mapping[str, Value], sites: Sequence[Site], default: Value
) -> list[Value]:
    if not pattern:
        return [default] * len(sites)
    patterns = Patterns(field, pattern, ConfigError)
    matching = patterns.matching(all_names(sites))
    for number, key in enumerate(pattern):
        if number not in matching:
            raise ConfigError(
                f"{field} key {key!r} matches none of the {len(sites)} targets; they are "
                f"{some(site.name for site in sites)}, with roles "
                f"{some(dict.fromkeys(site.role for site in sites))}"
            )
    return [patterns.lookup_any(names_of(site), default) for site in sites]


def _nothing(anatomy: Anatomy, target: str) -> NoReturn:
    for path, table in anatomy.tied.items():
        if path == target or path.endswith("." + target):
            raise ConfigError(
                f"{path} and {table} share one weight; name {table.rpartition('.')[2]!r} in "
                "target_modules, which adapts both (so does ensure_weight_tying=True), or give "
                f"{path} a weight of its own"
            )
    every = _modules(anatomy)
    for path, why in anatomy.left_out.items():
        named = f".{path}".endswith(f".{target}")
        if named or Expression("target_modules", target, ConfigError).fullmatch(path):
            raise ConfigError(f"target_modules entry {target!r}: {path} {why}; leave it out")
    for name, site in anatomy.parameters_by_name.items():
        if is_named(site, target):
            raise ConfigError(
                f"target_modules entry {target!r}: {name} is a parameter, not a module; name it "
                "in target_parameters"
            )
    for path in dict.fromkeys(weight.name.rpartition(".")[0] for weight in anatomy.weights):
        if f".{path}".endswith(f".{target}"):
            raise ConfigError(
                f"target_modules entry {target!r}: {path} is none of the layers that take factors "
                "(linear, embedding, Conv1d, Conv2d, Conv3d); name it in modules_to_save to train "
                "it whole"
            )
    roles = dict.fromkeys(site.role for site in anatomy.sites if site in every)
    leaves = dict.fromkeys(site.module.rpartition(".")[2] for site in every)
    raise ConfigError(
        f"target_modules entry {target!r} matches nothing in this model; roles are "
        f"{some(roles, 12)}; modules are {some(leaves, 12)}"
    )
