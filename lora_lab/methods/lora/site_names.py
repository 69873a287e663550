"""What names the sites of a config: their paths, roles, and the blocks that they are in."""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from lora_lab._util.format import some
from lora_lab._util.patterns import Budget, Expression, endings
from lora_lab.errors import ConfigError

if TYPE_CHECKING:
    from lora_lab.anatomy.types import Site

_DIGITS = re.compile(r"(\d{1,9})\.")


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
        whole = isinstance(excluded, str)
        pattern = Expression("exclude_modules", excluded, ConfigError) if whole else None
        named = by_ending(sites)
        gone = {own for name in ((excluded,) if whole else excluded) for own in named.get(name, ())}
        left = [
            site for site in sites if not (site.name in gone or (pattern and fits(pattern, site)))
        ]
        if len(left) == len(sites):
            warnings.warn(f"exclude_modules {excluded!r} excludes no target", stacklevel=4)
        sites = left
        if not sites:
            raise ConfigError(f"exclude_modules {excluded!r} excludes every target; name fewer")
    if getattr(config, "layers_to_transform", None) is not None:
        numbers = _block_numbers(sites, config.layers_pattern)
        exact = {*config.target_modules}  # a whole path is a target in whatever block it is
        wanted = {*config.layers_to_transform}
        sites = [s for s in sites if numbers[s.name] in wanted or s.module in exact]
        if not sites:
            known = sorted({n for n in numbers.values() if n is not None})
            raise ConfigError(
                f"layers_to_transform {some(sorted(wanted), 12)} names no layer that has a target; "
                f"they are {known}"
                + (f" in {config.layers_pattern}" if config.layers_pattern else "")
            )
    return tuple(sites)


def _block_numbers(
    sites: Sequence[Site], pattern: Sequence[str] | str | None
) -> dict[str, int | None]:
    """Return the first number in each module's path that follows one of the names, or any name."""
    budget = Budget()
    names = (pattern,) if isinstance(pattern, str) else pattern or (r"[^.]*",)
    lists = [Expression("layers_pattern", name, ConfigError, budget) for name in names]

    def number(path: str) -> int | None:
        starts = [at + 1 for at, character in enumerate(path) if character == "."]
        for name in lists:
            for start in starts if pattern is None else (0, *starts):
                ends = name.ends(path, 1 << start)
                found = [at for at in starts if ends >> at - 1 & 1 and _DIGITS.match(path, at)]
                if len(found) > 1:
                    raise ConfigError(
                        f"layers_pattern {pattern!r} is followed by {len(found)} numbers in {path};"
                        " name the list of blocks alone"
                    )
                if found and (digits := _DIGITS.match(path, found[0])):
                    return int(digits[1])
        return None

    known = {module: number(module) for module in dict.fromkeys(site.module for site in sites)}
    return {site.name: known[site.module] for site in sites}


def names_of(site: Site) -> tuple[str, ...]:
    """Return what a pattern may be for: a site's module, its own name, and its role."""
    if site.kind in ("experts", "parameter"):
        return (site.name, site.role)
    return (site.module, site.name, site.role)


def is_named(site: Site, target: str) -> bool:
    """Whether a target is a site's role, its name, or the end of its path."""
    return target in names_of(site) or any(
        path.endswith("." + target) for path in (site.module, site.name)
    )


def by_ending(sites: Iterable[Site]) -> dict[str, set[str]]:
    """Return {role, or end of a path: the sites that it names}."""
    found: dict[str, set[str]] = defaultdict(set)
    for site in sites:
        for name in (*names_of(site), *endings(site.module)[1:], *endings(site.name)[1:]):
            found[name].add(site.name)
    return found


def fits(pattern: Expression, site: Site) -> bool:
    """Whether a regular expression is for the whole path of a site."""
    return pattern.fullmatch(site.module) or pattern.fullmatch(site.name)


def all_names(sites: Iterable[Site]) -> list[str]:
    """Return what patterns may be for, of several sites."""
    return [name for site in sites for name in names_of(site)]
