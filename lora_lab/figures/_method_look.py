"""How methods look in figures: color tells the kind, the symbol the method within it."""

from __future__ import annotations

from lora_lab.figures._base import Colors


def look(method: str, colors: Colors) -> tuple[str, str]:
    """Return a method's color, which tells its kind, and its symbol within the kind."""
    if method.startswith("FT"):
        return colors.text, "square" if method == "FT" else "square-open"
    if method.startswith("Adapter^"):
        symbols = {"H": "diamond", "L": "diamond-open", "P": "diamond-wide"}
        return colors.other, symbols.get(method[-1], "diamond-tall")
    if "LoRA" in method:
        symbol = "star" if method == "AdaLoRA" else "circle-open" if "+" in method else "circle"
        return colors.accent, symbol
    symbols = {"PreEmbed": "triangle-up", "PreLayer": "triangle-down"}
    return colors.dim, symbols.get(method, "x")
