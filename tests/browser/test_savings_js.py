"""The Savings panel in a real Chromium: Python's numbers, at every stroke and in every size."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from lora_lab._util import format as words
from lora_lab.anatomy import Anatomy, anatomy
from lora_lab.budget import budget, evaluate_price, price_table
from lora_lab.budget.costs import Budget
from lora_lab.configs import LoraConfig, PrefixEmbedConfig
from lora_lab.methods.lora.targets import ranks
from lora_lab.models import model_config
from lora_lab_widgets.savings import Savings
from tests.browser.esm import EsmPage
from tests.helpers.tiny_models import tiny_config

pytestmark = pytest.mark.browser

PARTS = ("weights", "gradients", "optimizer", "activations", "total")
Q_V = LoraConfig(r=8, target_modules=["q", "v"])
Maker = Callable[..., EsmPage]


@pytest.fixture(scope="module")
def smollm2() -> Anatomy:
    return anatomy(model_config("smollm2-135m"))


@pytest.fixture(scope="module")
def price(smollm2: Anatomy) -> dict[str, Any]:
    return price_table(smollm2)


@pytest.fixture
def savings(esm_page: Maker, smollm2: Anatomy, price: dict[str, Any]) -> Callable[..., EsmPage]:
    def make(state: dict[str, Any] | None = None, **options: Any) -> EsmPage:
        panel = Savings(price=price, ranks=ranks(smollm2, Q_V), bench="b1")
        return esm_page(panel, state, **options)

    return make


def paint(page: EsmPage, painted: dict[str, int], bench: str = "b1") -> None:
    """Do what the rank grid does while a stroke is going on."""
    page.page.evaluate(
        "detail => document.dispatchEvent(new CustomEvent('lora-lab:ranks', { detail }))",
        {"bench": bench, "ranks": painted},
    )


def shown(page: EsmPage, view: int = 0) -> dict[str, Any]:
    """Return the exact numbers of a view."""
    root = page.view(view).locator(".ll-savings")
    cells = root.locator("td").evaluate_all("cells => cells.map(c => Number(c.dataset.llBytes))")
    return {
        "trainable": int(root.get_attribute("data-ll-trainable") or -1),
        "checkpoint": int(root.get_attribute("data-ll-checkpoint") or -1),
        "full": dict(zip(PARTS, cells[:5], strict=True)),
        "adapted": dict(zip(PARTS, cells[5:], strict=True)),
    }


def expected(budget: Budget) -> dict[str, Any]:
    return {
        "trainable": budget.parameters_trainable,
        "checkpoint": budget.checkpoint_bytes,
        "full": budget.full.to_json(),
        "adapted": budget.adapted.to_json(),
    }


def random_ranks(model: Anatomy, rng: random.Random) -> dict[str, int]:
    every = (*model.sites, *model.others)
    chosen = rng.sample(every, rng.randint(1, len(every)))
    return {site.name: rng.choice((0, 1, 2, 4, 8, 16)) for site in chosen} | {
        chosen[0].name: rng.randint(1, 32)
    }


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("smollm2-135m", {}),
        ("smollm2-135m", {"gradient_checkpointing": True, "lora": LoraConfig(lora_dropout=0.1)}),
        ("smollm2-135m", {"lora": LoraConfig(use_dora=True, lora_dropout=0.1)}),
        ("gpt2-medium", {"lora": LoraConfig(use_dora=True), "dtype": "bfloat16"}),
        ("gpt2-medium", {"lora": LoraConfig(use_dora=True), "optimizer": "adafactor"}),
        ("smollm2-135m", {"lora": LoraConfig(use_lorafa=True, lora_dropout=0.1)}),
        ("gpt2-medium", {"lora": LoraConfig(init_lora_weights="pissa")}),
        ("gpt2-medium", {"dtype": "bfloat16", "batch_size": 2}),
        ("minilm-l6", {}),
        ("smollm2-135m", {"optimizer": "adamw_8bit"}),
        ("gpt2-medium", {"optimizer": "adafactor", "batch_size": 1, "sequence_length": 1}),
        ("smollm2-135m", {"optimizer": "sgd", "padding_mask": True}),
        ("smollm2-135m", {"device": "T4", "dtype": "float16"}),
        ("t5", {"dtype": "float16", "lora": LoraConfig(lora_dropout=0.1)}),  # its wo is float32
        ("vit", {"lora": LoraConfig(use_dora=True)}),  # its patches are read by a convolution
    ],
)
def test_the_browser_computes_pythons_numbers(
    esm_page: Maker, name: str, options: dict[str, Any]
) -> None:
    model = anatomy(tiny_config(name) if name in ("t5", "vit") else model_config(name))
    price = price_table(model, **options)
    rng = random.Random(5)
    page = esm_page(Savings(price=price, bench="b1"))
    for _ in range(20):
        painted = random_ranks(model, rng)
        paint(page, painted)
        assert shown(page) == expected(evaluate_price(price, painted))
    assert page.saves() == page.sent() == []  # not a word to Python


def test_it_reads_as_the_sketch_does(savings: Maker, price: dict[str, Any]) -> None:
    page = savings()
    text = page.view().inner_text().replace("\u00a0", " ")
    panel = Savings(price=price, ranks=page.get("ranks"))
    budget = panel.budget
    assert budget is not None
    for part in (
        "against full fine-tuning, batch 8 × 128 tokens, AdamW, float32",
        "0.46 M",
        "trainable of 134.5 M (0.34 %)",
        words.format_bytes(budget.checkpoint_bytes),
        f"{words.format_ratio(budget.full_checkpoint_bytes, budget.checkpoint_bytes)} smaller",
        words.format_change(budget.adapted.total, budget.full.total),
        words.format_bytes(budget.full.total),
        words.format_bytes(budget.adapted.total),
    ):
        assert part in text
    page.set(settings_text="against full fine-tuning of a toy")
    assert "against full fine-tuning of a toy" in page.view().inner_text()


def test_javascript_formats_as_python_does(savings: Maker) -> None:
    page = savings()
    source = Savings._esm
    rng = random.Random(3)
    counts = [0, 812, 1023, 1024, 1152, 99_999, 100_000, 9_995_000, 2**20 - 1, 999_960_000]
    counts += [int(10 ** rng.uniform(0, 15)) for _ in range(300)]
    pairs = [[a, b] for a, b in zip(counts, reversed(counts), strict=True) if a and b]
    script = f"""async ([counts, pairs]) => {{
        const code = {source!r} + `
          export const formats = {{ formatBytes, formatParameters, formatShare, formatRatio,
            formatChange }};`;
        const url = URL.createObjectURL(new Blob([code], {{ type: "text/javascript" }}));
        const f = (await import(url)).formats;
        return [
          counts.map(f.formatBytes), counts.map(f.formatParameters),
          pairs.map(([a, b]) => f.formatShare(a, b)), pairs.map(([a, b]) => f.formatRatio(a, b)),
          pairs.map(([a, b]) => f.formatChange(a, b)),
        ];
    }}"""
    found = page.page.evaluate(script, [counts, pairs])
    assert found == [
        [words.format_bytes(n) for n in counts],
        [words.format_count(n) for n in counts],
        [words.format_share(a, b) for a, b in pairs],
        [words.format_ratio(a, b) for a, b in pairs],
        [words.format_change(a, b) for a, b in pairs],
    ]


def test_it_follows_its_own_bench_and_the_trait(
    savings: Maker, smollm2: Anatomy, price: dict[str, Any]
) -> None:
    page = savings(views=2)
    before = shown(page)
    other = {smollm2.sites[0].name: 16}
    paint(page, other, bench="another")
    assert shown(page) == before
    paint(page, other)
    assert shown(page) == shown(page, 1) == expected(evaluate_price(price, other))
    third = {smollm2.sites[5].name: 3}
    page.set(ranks=third)
    assert shown(page) == expected(evaluate_price(price, third))


def test_a_new_price_is_a_new_forecast(savings: Maker, smollm2: Anatomy) -> None:
    page = savings()
    longer = price_table(smollm2, batch_size=2, sequence_length=512)
    page.set(price=longer)
    assert shown(page) == expected(evaluate_price(longer, page.get("ranks")))
    assert "batch 2 × 512 tokens" in page.view().inner_text()


def heights(page: EsmPage) -> list[float]:
    lines = page.view().locator(".ll-savings-big, .ll-savings-row, .ll-savings-key")
    return lines.evaluate_all("all => all.map(e => e.getBoundingClientRect().top)")


@pytest.mark.parametrize("width", [340, 430, 600, 1000])
def test_nothing_moves_when_numbers_come_and_go(
    savings: Maker, smollm2: Anatomy, width: int
) -> None:
    page = savings(width=width)
    before = heights(page)
    page.set(ranks={})
    assert "paint a rank to see a plan" in page.view().inner_text()
    assert heights(page) == before
    plan = {site.name: 64 for site in smollm2.sites}
    part = "measured +12 % against the forecast; most in the activations: 900 MiB where 700 MiB"
    page.set(ranks=plan, run_ranks=plan, measured=measured(1500 << 20), difference=part)
    assert part in page.view().inner_text()
    assert heights(page) == before
    overflow = page.page.evaluate(
        "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    assert overflow <= 0


def test_without_a_model_it_says_so(esm_page: Maker) -> None:
    page = esm_page(Savings())
    assert "no model yet" in page.view().inner_text()


def test_thin_slices_stay_visible(savings: Maker, smollm2: Anatomy) -> None:
    page = savings({"ranks": {smollm2.sites[0].name: 1}})
    for part in ("gradients", "optimizer"):
        slices = page.view().locator(f".ll-savings-track .ll-savings-{part}:not([hidden])")
        widths = slices.evaluate_all("all => all.map(e => e.getBoundingClientRect().width)")
        assert min(widths) >= 1


def measured(peak: int, **changes: Any) -> dict[str, Any]:
    """Return a settled reading whose peak is a half weights, an eighth each the next two."""
    parts = {"weights": peak // 2, "gradients": peak // 8, "optimizer": peak // 8}
    rest = peak - sum(parts.values())
    reading = {"kind": "CUDA memory", "current": peak // 2, "peak": peak, "settled": True}
    return {**reading, **parts, "activations": rest, **changes}


def segments(page: EsmPage, row: str) -> dict[str, float]:
    """Return the widths in pixels of the parts on show in a row."""
    found = page.view().locator(".ll-savings-row", has_text=row).locator(".ll-savings-seg")
    return found.evaluate_all(
        """all => Object.fromEntries(all.filter(e => !e.hidden).map(
            e => [e.className.split("ll-savings-").pop(), e.getBoundingClientRect().width]))"""
    )


def test_the_measured_peak_is_stacked_as_the_forecasts_are(savings: Maker) -> None:
    page = savings()
    assert "measured while a run trains" in page.view().inner_text()
    assert segments(page, "measured peak") == {}
    forecast = shown(page)["adapted"]
    page.set(measured=measured(forecast["total"]))
    widths = segments(page, "measured peak")
    whole = sum(widths.values())
    assert whole == pytest.approx(sum(segments(page, "this plan").values()), abs=2)
    assert widths["weights"] == pytest.approx(whole / 2, abs=1)
    assert widths["activations"] == pytest.approx(whole / 4, abs=1)
    colors = (
        page.view()
        .locator(".ll-savings-weights")
        .evaluate_all("all => all.map(e => getComputedStyle(e).backgroundColor)")
    )
    assert len(set(colors)) == 1
    text = page.view().inner_text()
    assert f"CUDA memory, now {words.format_bytes(forecast['total'] // 2)}" in text
    # Twice the largest: everything shrinks to one scale.
    page.set(measured=measured(2 * shown(page)["full"]["total"]))
    assert sum(segments(page, "full").values()) == pytest.approx(
        sum(segments(page, "measured").values()) / 2, abs=3
    )


def test_a_meter_without_parts_gives_one_bar(savings: Maker) -> None:
    page = savings()
    reading = {"kind": "another accelerator", "current": 1 << 20, "peak": 1 << 28, "weights": 0}
    page.set(measured={**reading, "settled": True})
    assert list(segments(page, "measured peak")) == ["whole"]


def test_the_measured_row_judges_the_forecast_of_its_own_plan(
    savings: Maker, smollm2: Anatomy
) -> None:
    page = savings()
    plan, total = page.get("ranks"), shown(page)["adapted"]["total"]
    row = page.view().locator(".ll-savings-row", has_text="measured peak")
    page.set(run_ranks=plan, measured=measured(total + 9))
    assert "✓ 0 %" in row.inner_text()
    page.set(measured=measured(int(total * 1.049)))
    assert "✓ +5 %" in row.inner_text()
    page.set(measured=measured(int(total * 1.12)), difference="most in the activations")
    assert "+12 %" in row.inner_text()
    assert "✓" not in row.inner_text()
    assert "most in the activations" in page.view().inner_text()
    assert "+12 % against the forecast" in (row.get_attribute("title") or "")
    # Before the optimizer's state has come there is nothing to judge.
    page.set(measured=measured(total // 2, settled=False))
    assert "%" not in row.inner_text()
    page.set(measured=measured(total * 2))
    paint(page, {smollm2.sites[0].name: 16})
    assert "%" not in row.inner_text()
    assert "most in the activations" not in page.view().inner_text()
    assert "measured of another plan or other settings" in page.view().inner_text()
    paint(page, {**plan, smollm2.sites[1].name: 0})  # a rank of 0 is no rank
    assert "+100 %" in row.inner_text()
    page.set(measured={}, difference="")
    assert "CUDA" not in page.view().inner_text()


def test_a_dry_run_takes_the_formulas_place_and_says_so(savings: Maker, smollm2: Anatomy) -> None:
    page = savings()
    row = page.view().locator(".ll-savings-row", has_text="this plan")
    whole = page.view().locator(".ll-savings-row", has_text="full fine-tuning")
    formula = shown(page)
    assert "formula" in row.inner_text()
    plan = {
        "weights": 400 << 20,
        "gradients": 2 << 20,
        "optimizer": 4 << 20,
        "activations": 1 << 28,
    }
    page.set(dry_run={"plan": plan, "ranks": page.get("ranks")}, note="full fine-tuning is next…")
    assert shown(page)["adapted"] == {**plan, "total": sum(plan.values())}
    assert shown(page)["full"] == formula["full"]
    assert "dry run" in row.inner_text()
    assert "formula" in whole.inner_text()
    assert "fake tensors" in (row.get_attribute("title") or "")
    assert words.format_bytes(sum(plan.values())) in row.inner_text()
    assert "full fine-tuning is next…" in page.view().inner_text()
    twin = page.view().locator("tbody th").all_text_contents()
    assert twin == ["full fine-tuning (formula)", "this plan (dry run)"]
    full = {part: size * 2 for part, size in plan.items()}
    page.set(dry_run={"plan": plan, "ranks": page.get("ranks"), "full": full})
    assert shown(page)["full"]["total"] == 2 * sum(plan.values())
    assert "−50 %" in page.view().inner_text()
    # Another plan has no dry run yet; full fine-tuning is the same for all.
    paint(page, {smollm2.sites[0].name: 4})
    assert "formula" in row.inner_text()
    assert "dry run" in whole.inner_text()


def test_estimates_are_marked(esm_page: Maker) -> None:
    model = anatomy(model_config("minilm-l6"))
    panel = Savings(price=price_table(model), ranks=ranks(model, Q_V), bench="b1")
    page = esm_page(panel)
    assert "≈ −" in page.view().inner_text()
    bar = page.view().locator(".ll-savings-track .ll-savings-activations").first
    assert "gradient" in bar.evaluate("e => getComputedStyle(e).backgroundImage")
    plan = page.view().locator(".ll-savings-row", has_text="this plan")
    assert "≈ formula" in plan.inner_text()
    assert "activations are an estimate" in (plan.get_attribute("title") or "")
    exact = price_table(model)["full"]
    page.set(dry_run={"full": exact, "plan": exact, "ranks": page.get("ranks")})
    assert "≈" not in page.view().inner_text()


def test_tooltips_break_the_bytes_down(savings: Maker, price: dict[str, Any]) -> None:
    page = savings()
    title = page.view().locator(".ll-savings-row", has_text="full").get_attribute("title") or ""
    for part in PARTS[:-1]:
        assert f"{part}: {words.format_bytes(price['full'][part])}" in title


@pytest.mark.parametrize("by", ["cleanup", "signal"])
def test_a_closed_view_leaves_nothing_behind(savings: Maker, by: str) -> None:
    page = savings()
    page.remove_view(by=by)
    assert page.open_ends() == {"model": 0, "document": 0, "window": 0, "intervals": 0}


def test_another_method_comes_priced_and_paint_does_not_change_it(
    savings: Callable[..., EsmPage], smollm2: Anatomy
) -> None:
    config = PrefixEmbedConfig()
    page = savings()
    panel = Savings(price=price_table(smollm2))
    cost = budget(smollm2, config)
    panel.show("PreEmbed 8+8", cost)
    page.set(totals=panel.totals)
    assert shown(page) == expected(cost)
    paint(page, {})
    assert shown(page) == expected(cost)
    page.set(
        dry_run={"plan": {**panel.totals["memory"], "weights": 1}, "ranks": {}, "key": "other"}
    )
    assert shown(page) == expected(cost), "a dry run of another plan"
    page.set(dry_run={**page.get("dry_run"), "key": "PreEmbed 8+8"})
    assert shown(page)["adapted"]["weights"] == 1
    panel.show("", None)
    page.set(totals=panel.totals)
    assert shown(page)["trainable"] == 0
    assert "these settings make no plan" in page.view().inner_text()
    page.set(totals={})
    paint(page, ranks(smollm2, Q_V))
    assert shown(page) == expected(budget(smollm2, Q_V))
