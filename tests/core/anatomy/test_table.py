"""The table of an anatomy, as text and as HTML."""

from __future__ import annotations

from torch import nn

from lora_lab.anatomy import anatomy
from tests.helpers.tiny_models import tiny_config


def test_the_printed_table_is_small() -> None:
    config = tiny_config("llama", num_hidden_layers=30)
    text = str(anatomy(config))
    lines = text.splitlines()
    assert len(lines) == 3
    assert lines[1].split() == ["layer", "q", "k", "v", "o", "gate", "up", "down"]
    assert lines[2].split() == [
        "0–29",
        "32×32",
        "16×32",
        "16×32",
        "32×32",
        "48×32",
        "48×32",
        "32×48",
    ]
    assert "30 layers · hidden 32 · 4 heads of 8 (2 for k and v)" in lines[0]
    text = str(anatomy(tiny_config("t5")))
    assert [line.split("  ")[0] for line in text.splitlines()[2:]] == ["enc 0–1", "dec 0–2"]
    assert "·" in text.splitlines()[2]
    assert str(anatomy(tiny_config("bert"))).endswith("classifier 2×32")


def test_many_roles_are_cut_aloud() -> None:
    model = nn.Module()
    block = nn.ModuleDict({f"matrix_{i}": nn.Linear(2, 2) for i in range(20)})
    model.layers = nn.ModuleList([block])
    assert "4 more roles" in str(anatomy(model))
    assert len(anatomy(model).roles) == 20


def test_html_escapes_names() -> None:
    block = nn.Module()
    block.add_module("<script>", nn.Linear(2, 2))
    model = nn.Module()
    model.layers = nn.ModuleList([block])
    model.add_module("<b>", nn.Linear(2, 2))
    html = anatomy(model)._repr_html_()
    assert "<script>" not in html
    assert "<b>" not in html
    assert "&lt;script&gt;" in html
    assert "&lt;b&gt;" in html
    assert "2×2" in html
