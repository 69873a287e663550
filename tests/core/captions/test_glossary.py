"""The glossary: short, whole, found under every name that people have for a term."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

import lora_lab as ll
from lora_lab.captions.glossary import Term, glossary, keys_of, markdown, shown_terms, terms
from lora_lab.cli import main
from lora_lab.errors import ConfigError
from lora_lab.methods.registry import offered
from lora_lab.runs.training_config import TrainingConfig
from lora_lab.tasks.decoding import Decoding

DOC = Path(__file__).parents[3] / "docs" / "glossary.md"
# The metrics that the tasks bring.
METRICS = (
    *("loss", "kept_loss", "kept_data_loss", "perplexity", "bleu", "bleu_lowercase", "chrf"),
    *("exact_match", "rouge_1", "rouge_2", "rouge_l", "rouge_l_coco", "nist", "cider", "ter"),
    *("logical_form", "execution", "accuracy", "matthews", "f1", "macro_f1"),
    *("pearson", "spearman", "meteor", "meteor_coco"),
)


@pytest.mark.parametrize("term", terms().values(), ids=lambda term: term.key)
def test_a_term_is_two_sentences_that_fit_beside_what_they_explain(term: Term) -> None:
    ends = re.findall(r"[.!?](?=\s|$)", term.text)
    assert 1 <= len(ends) <= 2
    assert term.text.endswith(".")
    assert len(term.text) <= 420
    assert len(term.equation) <= 90
    # Text, never markup: it is set as text everywhere.
    assert not re.search(r"[<`*\\$]|\n|  ", term.text)
    assert term.key == term.key.lower()


def test_no_two_terms_have_one_title_and_every_name_leads_to_a_term() -> None:
    titles = [term.title for term in terms().values()]
    assert len(set(titles)) == len(titles)
    for term in terms().values():
        for name in (term.key, term.title, term.key.upper(), term.key.replace("-", "_")):
            assert glossary(name) is term
        for name in (*term.names, *term.settings, *term.methods, *term.metrics):
            assert isinstance(glossary(name), Term), name


def test_every_method_that_is_offered_has_a_term() -> None:
    assert set(keys_of("methods")) == set(offered())


def test_every_metric_has_a_term_and_every_setting_of_a_term_exists() -> None:
    assert set(keys_of("metrics")) == set(METRICS)
    known = {f.name for method in offered().values() for f in fields(method.config)}
    known |= {f.name for c in (TrainingConfig, Decoding) for f in fields(c)}
    assert set(keys_of("settings")) - known == set()


def test_the_documentation_is_the_glossary() -> None:
    again = "write it again: lora-lab glossary --markdown > docs/glossary.md"
    assert DOC.read_text(encoding="utf-8") == markdown(), again
    assert all(f'<a id="{key}"></a>' in markdown() for key in terms())


def test_a_page_gets_the_terms_that_it_names_and_no_others() -> None:
    rank = glossary("rank")
    assert isinstance(rank, Term)
    shown = shown_terms(["rank", "alpha", "rank"])
    assert list(shown) == ["alpha", "rank"]
    assert shown["rank"] == [rank.title, rank.text, rank.equation, rank.source]
    with pytest.raises(ValueError, match=r"glossary.toml has no term 'rnak'"):
        shown_terms(["rnak"])


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("φ", "phi"),
        ("Effective Rank", "effective-rank"),
        ("lora_alpha", "alpha"),
        ("LoRA+PE", "pre-embed"),
        ("why −42 % and not 3×", "savings"),
        ("nats per token", "nats"),
        ("gradient checkpointing", "recompute"),
        ("checkpoint", "checkpoint"),
        ("Adapter^H", "adapter-h"),
        ("bleu", "bleu"),
        ("r", "rank"),
        ("tinit", "adalora-schedule"),
    ],
)
def test_terms_are_found_as_people_call_them(name: str, key: str) -> None:
    assert ll.glossary(name).key == key


def test_a_name_that_it_does_not_have_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no term 'intruders'; did you mean intruder"):
        ll.glossary("intruders")
    with pytest.raises(ConfigError, match=r"no term 'qqqqqq'; ll.glossary\(\) lists all"):
        ll.glossary("qqqqqq")
    with pytest.raises(ConfigError, match="a term is a text, such as 'rank', not int"):
        ll.glossary(3)  # type: ignore[arg-type]


def test_a_notebook_shows_a_term_as_text() -> None:
    term = Term("k", "c", "<b>", "Less < more.", "a < b")
    assert term._repr_html_() == "<p><b>&lt;b&gt;</b><br>Less &lt; more.<br>a &lt; b</p>"
    assert str(term) == "<b>\n  Less < more.\n  a < b"
    assert ll.glossary()._repr_html_().count("<p>") == len(terms())


def test_the_command_line_prints_a_term_all_terms_and_the_page(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def printed(*arguments: str) -> str:
        assert main(["glossary", *arguments]) == 0
        return capsys.readouterr().out

    assert printed("effective", "rank").startswith("effective rank\n  Over how many directions")
    assert json.loads(printed("rank", "--json"))["terms"][0]["settings"] == ["target_r"]
    assert len(json.loads(printed("--json"))["terms"]) == len(terms())
    assert printed("--markdown") == markdown()
    assert main(["glossary", "rnak"]) == 2
    assert "did you mean rank" in capsys.readouterr().err
