"""What a config means on a given model: which sites, of what rank, with what scale."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from lora_lab.errors import ConfigError
from lora_lab.methods.lora.config import LoraConfig
from lora_lab.methods.lora.peft_fields import HEADS

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
    thin = [p for p in resolve_targets(anatomy, config) if p.r < _asked(p.site, config)]
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


def select(anatomy: Anatomy, targets: Sequence[str] | str) -> tuple[Site, ...]:
    """Return the sites that `target_modules` names, in the anatomy's order.

    A list entry is a role, a site's name, or the end of a module's path (PEFT's rule); a string
    is "all-linear", such an entry, or a regular expression for the whole path. Embeddings and
    convolutions are found by name, as is an output layer with a weight of its own, and are not
    among "all-linear"; nor is a classifier's head, which is trained whole.
    """
    every = _modules(anatomy)
    if isinstance(targets, str):
        if is_all_linear(targets):
            heads = tuple(f"{head}." for head in anatomy.heads)
            linear = (s for s in anatomy.sites if s.kind == "linear")
            return tuple(s for s in linear if not f"{s.module}.".startswith(heads))
        if not any(_named(site, targets) for site in every):
            pattern = _compile("target_modules", targets)
            found = tuple(
                s for s in every if pattern.fullmatch(s.module) or pattern.fullmatch(s.name)
            )
            return found or _nothing(anatomy, targets)
        targets = [targets]
    chosen: set[str] = set()
    for target in targets:
        names = {site.name for site in every if _named(site, target)}
        chosen |= names or {s.name for s in _nothing(anatomy, target)}
    return tuple(site for site in every if site.name in chosen)


def within(sites: Sequence[Site], config: Any) -> tuple[Site, ...]:
    """Return the sites that `exclude_modules` and `layers_to_transform` leave (PEFT's rules).

    Args:
        sites: the targets.
        config: that has the former, and if its method has them, `layers_to_transform` and
            `layers_pattern`.

    Raises:
        ConfigError: they leave none.
    """
    excluded = config.exclude_modules
    if excluded:
        pattern = _compile("exclude_modules", excluded) if isinstance(excluded, str) else None
        names = (excluded,) if isinstance(excluded, str) else excluded
        left = [
            site
            for site in sites
            if not (pattern and (pattern.fullmatch(site.module) or pattern.fullmatch(site.name)))
            and not any(_named(site, name) for name in names)
        ]
        if len(left) == len(sites):
            warnings.warn(f"exclude_modules {excluded!r} excludes no target", stacklevel=4)
        sites = left
        if not sites:
            raise ConfigError(f"exclude_modules {excluded!r} excludes every target; name fewer")
    if getattr(config, "layers_to_transform", None) is not None:
        numbers = {site.name: _block_number(site, config.layers_pattern) for site in sites}
        exact = config.target_modules  # a whole path is a target in whatever block it is
        wanted: Any = config.layers_to_transform
        sites = [s for s in sites if numbers[s.name] in wanted or s.module in exact]
        if not sites:
            known = sorted({n for n in numbers.values() if n is not None})
            raise ConfigError(
                f"layers_to_transform {list(wanted)} names no layer that has a target; they are "
                f"{known}" + (f" in {config.layers_pattern}" if config.layers_pattern else "")
            )
    return tuple(sites)


def _block_number(site: Site, pattern: Sequence[str] | str | None) -> int | None:
    """Return the first number in a module's path that follows one of the names, or any name."""
    for name in (pattern,) if isinstance(pattern, str) else pattern or (r"[^.]*",):
        before = r".*?\." if pattern is None else r"(?:^|.*?\.)"
        if found := _compile("layers_pattern", rf"{before}{name}\.(\d+)\.").match(site.module):
            return int(found[1])
    return None


def select_parameters(anatomy: Anatomy, names: Sequence[str]) -> tuple[Site, ...]:
    """Return the sites that `target_parameters` names: by the end of the parameter's name.

    The weight of a linear layer ("q_proj.weight") is that layer's site.
    """
    known = {f"{s.module}.{s.parameter}": s for s in (*anatomy.sites, *anatomy.others)}
    found: dict[str, Site] = {}
    for name in names:
        own = [site for key, site in known.items() if f".{key}".endswith(f".{name}")]
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
        raise ConfigError("no rank is painted; give at least one site a rank")
    if unknown := painted.keys() - anatomy.by_name.keys():
        raise ConfigError(f"no site is called {min(unknown)!r}; see anatomy(model).sites")
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
    alphas = {key: a for key, a in template.alpha_pattern.items() if _matches(key, sites)}
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


def lookup(pattern: Mapping[str, Value], names: Iterable[str], default: Value) -> Value:
    """Return the value of the first key that matches the end of one of the names (PEFT's rule)."""
    names = tuple(names)
    for key, value in pattern.items():
        expression = _compile("pattern", rf"(.*\.)?({key})$")
        if any(expression.match(name) for name in names):
            return value
    return default


def _is_matrix(weight: Weight) -> bool:
    """Whether a tensor may be what vectors are multiplied by: no table, no scan's or norm's."""
    table = re.search("embed|token|position|bias|A_log", weight.name.rpartition(".")[2])
    return len(weight.shape) > 1 and min(weight.shape[-2:]) > 1 and table is None


def _asked(site: Site, config: LoraConfig) -> int:
    return lookup(config.rank_pattern, _names(site), config.r)


def _names(site: Site) -> tuple[str, ...]:
    if site.kind in ("experts", "parameter"):
        return (site.name, site.role)
    return (site.module, site.name, site.role)


def _named(site: Site, target: str) -> bool:
    return target in _names(site) or any(
        path.endswith("." + target) for path in (site.module, site.name)
    )


def _by_pattern(
    field: str, pattern: Mapping[str, Value], sites: Sequence[Site], default: Value
) -> list[Value]:
    for key in pattern:
        if not _matches(key, sites, field):
            raise ConfigError(
                f"{field} key {key!r} matches none of the {len(sites)} targets; they are "
                f"{some(site.name for site in sites)}, with roles "
                f"{some(dict.fromkeys(site.role for site in sites))}"
            )
    return [lookup(pattern, _names(site), default) for site in sites]


def _matches(key: str, sites: Sequence[Site], field: str = "alpha_pattern") -> bool:
    expression = _compile(field, rf"(.*\.)?({key})$")
    return any(expression.match(name) for site in sites for name in _names(site))


def _nothing(anatomy: Anatomy, target: str) -> tuple[Site, ...]:
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
        if named or _compile("target_modules", target).fullmatch(path):
            raise ConfigError(f"target_modules entry {target!r}: {path} {why}; leave it out")
    for name, site in anatomy.parameters_by_name.items():
        if _named(site, target):
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


def some(names: Iterable[str], most: int = 4) -> str:
    """Return the first of some names, and how many there are where there are more."""
    listed = list(names)
    more = f" … ({len(listed)} in all)" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def _compile(field: str, expression: str) -> re.Pattern[str]:
    try:
        return re.compile(expression)
    except re.error as error:
        raise ConfigError(
            f"{field}: {expression!r} is not a regular expression ({error})"
        ) from None
