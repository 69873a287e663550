"""Numbers as people read them.

The widgets have the same in JavaScript, to the letter: `static/_shared.js` and
`static/savings_price.js`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from decimal import ROUND_HALF_UP, Decimal

_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def format_bytes(count: float) -> str:
    """Return three significant digits in binary units.

    >>> format_bytes(1_116_691_497), format_bytes(24_576), format_bytes(812)
    ('1.04 GiB', '24 KiB', '812 B')
    """
    value, unit = abs(float(count)), 0
    while value >= 1023.5 and unit < len(_BYTE_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    decimals = 0 if unit == 0 or value >= 99.95 else 1 if value >= 9.995 else 2
    digits = _fixed(value, decimals)
    whole, _, fraction = digits.partition(".")
    return (
        f"{'−' if count < 0 else ''}{digits if fraction.strip('0') else whole} {_BYTE_UNITS[unit]}"
    )


def a_kind(thing: object) -> str:
    """Return "a list" or "an Embedding": the class of an object, a class itself, or a word.

    >>> a_kind([1]), a_kind(int), a_kind("Embedding")
    ('a list', 'an int', 'an Embedding')
    """
    kind = thing if isinstance(thing, type) else type(thing)
    noun = thing if isinstance(thing, str) else kind.__name__
    return f"{'an' if noun[:1].upper() in tuple('AEIOU') else 'a'} {noun}"


def format_count(count: float) -> str:
    """Return a number of parameters: whole below 100,000, then in millions (M) or billions (B).

    >>> format_count(6_144), format_count(921_600), format_count(134_515_008)
    ('6,144', '0.92 M', '134.5 M')
    """
    if count < 100_000:
        return f"{round(count):,}"
    value, unit = (count / 1e9, "B") if count >= 999.95e6 else (count / 1e6, "M")
    return f"{_fixed(value, 2 if value < 9.995 else 1)} {unit}"


def format_share(part: float, whole: float) -> str:
    """Return part/whole in percent: two decimals, or two significant digits where it is tiny.

    >>> format_share(921_600, 134_515_008), format_share(18_874_368, 174_604_328_960)
    ('0.69 %', '0.011 %')
    """
    percent = 100 * part / whole if whole else 0.0
    if 0 < percent < 0.1:
        return f"{_fixed(percent, 1 - math.floor(math.log10(percent)))} %"
    return f"{_fixed(percent, 2 if percent < 10 else 1)} %"


def format_ratio(large: float, small: float) -> str:
    """Return how many times smaller `small` is: "141×", "2.4×"; "–" when nothing is left."""
    if not small:
        return "–"
    ratio = large / small
    return f"{_fixed(ratio, 1)}×" if ratio < 9.95 else f"{int(_fixed(ratio, 0)):,}×"


def format_change(new: float, old: float) -> str:
    """Return the change from old to new in whole percent, with its sign: "−61 %"."""
    percent = int(_fixed(abs(100 * (new - old) / old), 0)) if old else 0
    sign = "" if percent == 0 else "−" if new < old else "+"
    return f"{sign}{percent} %"


def format_number(value: float) -> str:
    """Return three significant digits, trailing zeros kept, so that columns align.

    >>> format_number(3.5), format_number(0.00174), format_number(1234.5), format_number(1.2e-6)
    ('3.50', '0.00174', '1,234')
    """
    if not math.isfinite(value):
        return "undefined"
    if value and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.2e}"
    # The power of ten of the rounded value: 0.9999 is 1.00, not 1.000.
    digits = 2 - int(f"{value:.2e}".partition("e")[2])
    return f"{value:,.{max(0, digits)}f}"


def plural(count: int, noun: str, several: str = "") -> str:
    """Return a count with its noun; `several` where that is more than an s longer.

    >>> plural(1, "run"), plural(1200, "run"), plural(2, "matrix", "matrices")
    ('1 run', '1,200 runs', '2 matrices')
    """
    return f"{count:,} {noun if count == 1 else several or f'{noun}s'}"


def _fixed(value: float, decimals: int) -> str:
    # Halves go up, as JavaScript's toFixed has it; str.format would round them to even.
    step = Decimal(1).scaleb(-decimals)
    return f"{Decimal(value).quantize(step, rounding=ROUND_HALF_UP):f}"


def some(names: Iterable[object], most: int = 4) -> str:
    """Return the first of some names, and how many there are where there are more."""
    listed = list(map(str, names))
    more = f" … ({len(listed)} in all)" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def shown(value: object, most: int = 80) -> str:
    """Return what a file or a call brought as a message may have it: on one line, and short."""
    if isinstance(value, int) and abs(value) > 10**most:
        return f"a number of {value.bit_length():,} bits"  # of too many digits Python makes no text
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}…"
