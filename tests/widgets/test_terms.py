"""The "?" of the panels: every key is a term, and each panel brings the texts of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import lora_lab_widgets  # noqa: F401  defines every panel
from lora_lab.captions.glossary import terms
from lora_lab.methods.registry import offered
from lora_lab_widgets.methods import entries, form_fields
from lora_lab_widgets.panel import STATIC, PanelWidget, assets, named_terms
from lora_lab_widgets.run_panel import RunPanel
from tests.browser.run_panel_page import panel

# Terms that no "?" of a panel shows: docs/glossary.md and `ll.glossary` have them.
ELSEWHERE = {"w0", "pissa"}


def panels(base: type[PanelWidget] = PanelWidget) -> Iterator[type[PanelWidget]]:
    for each in base.__subclasses__():
        if "module" in each.__dict__ and each.__module__.startswith("lora_lab_widgets."):
            yield each
        yield from panels(each)


def brought(panel: type[PanelWidget]) -> dict[str, list[str]]:
    """Return the part of the glossary that a panel's module carries."""
    found = re.search(r"^const GLOSSARY = (\{.*\});$", panel._esm, re.MULTILINE)
    return json.loads(found[1]) if found else {}


def test_every_key_in_javascript_and_python_is_a_term_of_the_glossary() -> None:
    named = {key for path in STATIC.glob("*.js") for key in named_terms(path.read_text("utf-8"))}
    named |= {key for each in panels() for key in each.terms}
    assert len(named) > 60
    assert named - set(terms()) == set()


def test_every_term_is_shown_by_a_panel_or_stands_in_the_documents_alone() -> None:
    shown = {key for each in panels() for key in brought(each)}
    assert set(terms()) - shown == ELSEWHERE - shown


def test_a_panel_brings_the_texts_of_the_glossary() -> None:
    found = brought(RunPanel)
    term = terms()["alpha"]
    assert found["alpha"] == [term.title, term.text, term.equation, term.source]
    assert "asha" not in found  # the sweep's


def test_a_key_that_is_no_term_is_an_error_when_the_panel_is_defined() -> None:
    with pytest.raises(ValueError, match="no term 'rnak'"):
        assets("site_map", ["rnak"])


def test_calls_name_their_terms_one_or_several() -> None:
    text = 'a(term("rank"), term(["roles", "q"], () => this.x("y")), new Term(() => ["z"]));'
    assert named_terms(text) == ["rank", "roles", "q"]


def test_every_method_of_the_drop_down_and_every_field_that_needs_it_is_explained() -> None:
    methods = {each["name"]: each["terms"] for each in panel().methods}
    assert set(methods) == set(entries())
    assert all(methods.values())
    assert methods["LoRA+PE"] == ["lora", "pre-embed"]
    explained = {field["name"] for field in form_fields() if "term" in field}
    own = {f.name for method in offered().values() for f in method.typed_fields}
    assert own - explained == set()
    assert {field["name"] for field in form_fields()} - explained == set()


def test_the_metrics_of_the_task_that_is_picked_are_explained() -> None:
    shown = panel()
    assert shown.plan["terms"] == ["bleu", "chrf", "exact-match"]
    assert shown.plan["loss_unit"] == "nats per token"


def test_a_panel_of_ones_own_gets_the_terms_that_it_names(tmp_path: Path) -> None:
    class Own(PanelWidget):
        module = "delta_title"
        terms = ("asha",)

    assert {"asha", "delta-w", "overlap"} <= set(brought(Own))
