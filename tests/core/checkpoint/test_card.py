"""The model card: what it states is what was done, and names cannot break out of it."""

import json

import pytest
import torch
import yaml
from markdown_it import MarkdownIt

import lora_lab as ll
from lora_lab.checkpoint import model_card
from lora_lab.errors import AdapterError, RunError
from lora_lab.models import Card
from tests.helpers.lora_outputs import everything, outputs
from tests.helpers.tiny_models import tiny, tiny_inputs
from tests.helpers.tiny_run import CONFIG, tiny_lm, tiny_task

BASE = Card("smollm2-135m", "owner/some-base", "embedded", "Apache-2.0", "float32", "cpu", 1)


def parts(card: str) -> tuple[dict, str]:
    """The front matter as the hub reads it, and the text as HTML."""
    _, front, text = card.split("---\n", 2)
    return yaml.safe_load(front), MarkdownIt("commonmark").enable("table").render(text)


def rows(card: str) -> dict[str, list[str]]:
    """{first cell: the other cells} of all tables."""
    lines = [line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("| ")]
    return {line[0]: line[1:] for line in lines}


def adapted(**changes):
    model = tiny("llama")
    ll.attach(model, everything(**{"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, **changes}))
    return model


def test_the_front_matter_is_what_the_hub_asks_for():
    front, _ = parts(model_card(adapted(), base=BASE))
    assert front == {
        "base_model": "owner/some-base",
        "library_name": "peft",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "lora-lab", "base_model:adapter:owner/some-base"],
    }
    front, _ = parts(model_card(adapted(), base=BASE, merged=True))
    assert front["library_name"] == "transformers"
    assert front["base_model"] == "owner/some-base"


def test_a_folder_on_this_machine_is_no_base_model(tmp_path):
    model = adapted()
    model.config._name_or_path = str(tmp_path / "secret" / "my-base")
    card = model_card(model)
    assert "base_model" not in parts(card)[0]
    assert "my-base" in card
    assert "secret" not in card
    model.config._name_or_path = "owner/name"
    assert parts(model_card(model))[0]["base_model"] == "owner/name"


def test_the_tables_are_the_adapters():
    config = {
        "target_modules": ["q", "down", "model.layers.1.self_attn.v_proj"],
        "rank_pattern": {"down": 2, r"layers\.1\.mlp\.down_proj": 6},
        "alpha_pattern": {"v": 2},
        "use_rslora": True,
    }
    # The first pattern that matches wins, so the finer one stands first.
    config["rank_pattern"] = dict(reversed(config["rank_pattern"].items()))
    table = rows(model_card(adapted(**config)))
    assert table["q"] == ["2", "0 to 1", "4", "4"]  # α/√r = 8/2
    assert table["v"] == ["1", "1", "4", "1"]
    assert table["down"][:3] == ["2", "0 to 1", "2 to 6"]
    assert table["α"] == ["2 to 8"]
    assert table["dropout"] == ["0.1"]
    # Llama 32 wide, 48 in the MLP, values 16 wide: r(in + out) of every matrix.
    count = 2 * 4 * (32 + 32) + 4 * (32 + 16) + (2 + 6) * (48 + 32)
    assert table["trained parameters"][0].startswith(f"{count:,} (")
    assert table["method"] == ["LoRA, rank-stabilized (s = α/√r)"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_dora": True}, "LoRA, DoRA"),
        ({"use_lorafa": True}, "LoRA, LoRA-FA (A stays as drawn)"),
        ({"init_lora_weights": "olora"}, "LoRA, started by olora"),
    ],
)
def test_the_method_is_named(changes, words):
    assert rows(model_card(adapted(**changes)))["method"] == [words]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = ll.train(
        tiny_lm(),
        tiny_task(),
        CONFIG,
        output_dir=tmp_path_factory.mktemp("runs"),
        max_steps=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=3,
        learning_rate=2e-3,
        eval_examples=2,
    )
    run.result(60)
    return run


def test_a_run_and_its_folder_tell_the_same(run):
    card = model_card(run.model, run=run)
    assert card == model_card(run.model, run=run.folder)
    table = rows(card)
    assert table["data"] == ["letters (synthetic)"]
    assert table["framing of prompts"] == ["the prompt on a line of its own"]
    assert (table["training examples"], table["steps"]) == (["64"], ["2"])
    assert (table["examples a step"], table["learning rate"]) == (["6"], ["0.002"])
    summary = json.loads((run.folder / "summary.json").read_text())
    assert table["padding, of the tokens computed"] == [f"{100 * summary['padding']:.1f}%"]
    metrics = summary["metrics"]
    for name, label in (("loss", "held-out loss"), ("bleu", "BLEU")):
        (cells,) = [cells for first, cells in table.items() if first.startswith(label)]
        assert cells == [f"{metrics[f'{name}_{moment}']:.4g}" for moment in ("before", "after")]


def test_the_results_say_of_how_many_examples_they_are(run):
    card = model_card(run.model, run=run)
    assert "Scored on 2 of 4 held-out examples; 95 % intervals" in card


def test_a_run_that_is_not_over_is_refused(tmp_path):
    idle = ll.train(tiny_lm(), tiny_task(), CONFIG, output_dir=tmp_path, start=False)
    with pytest.raises(RunError, match=r"is idle; wait\(\) for its end"):
        model_card(adapted(), run=idle)
    with pytest.raises(AdapterError, match="not readable JSON"):
        model_card(adapted(), run=tmp_path / "nowhere")


HOSTILE = "a|b *c* [d](http://e) <script>alert(1)</script>\n# `f`\n---\nwww.g.h $x$ &amp; ![i](j)"


def test_names_show_as_they_are_and_do_nothing(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "model": {"name": HOSTILE, "hub_id": HOSTILE, "license": HOSTILE},
                "task": {"name": HOSTILE, "synthetic": "yes", "examples": "many"},
                "training": {"learning_rate": {"a": 1}, "seed": True, "max_length": 1e400},
            }
        )
    )
    metrics = {f"{HOSTILE}_before": 1.0, "loss_after": "low", "bleu_after": None}
    told = {"evaluated": {"examples": "many"}, "intervals": {"loss_after": "low"}}
    (tmp_path / "summary.json").write_text(json.dumps({"metrics": metrics, "steps": [1], **told}))
    card = model_card(adapted(), run=tmp_path)
    front, html = parts(card)
    assert front.keys() == {"library_name", "pipeline_tag", "tags"}
    for tag in ("<script", "<a ", "<img", "<em", "http://e<"):
        assert tag not in html
    assert html.count("<h1>") == 1
    assert "a|b *c* [d](http://e) &lt;script&gt;" in html  # in a table's cell
    assert all(line.count(" | ") in (1, 2, 4) for line in card.splitlines() if line[:2] == "| ")
    assert "seed" not in html


def test_data_of_a_local_file_are_called_by_the_files_name(tmp_path):
    for name in ("/home/me/secret/train.csv", "C:\\me\\secret\\train.csv"):
        (tmp_path / "config.json").write_text(json.dumps({"task": {"name": name}}))
        assert rows(model_card(adapted(), run=tmp_path))["data"] == ["train.csv"]


def test_a_folder_for_the_hub_holds_adapter_and_card(tmp_path):
    from peft import PeftModel

    model = adapted()
    batch = tiny_inputs(model)
    folder = ll.push_ready(model, tmp_path / "out", base=BASE)
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert (folder / "README.md").read_text(encoding="utf-8") == model_card(model, base=BASE)
    theirs = PeftModel.from_pretrained(tiny("llama"), folder)
    with torch.no_grad():
        torch.testing.assert_close(outputs(theirs, batch), outputs(model, batch))
    with pytest.raises(AdapterError, match="holds files already"):
        ll.push_ready(model, folder)


@pytest.mark.parametrize(
    ("config", "library", "line"),
    [
        (ll.IA3Config(target_modules=["k", "v"]), "peft", "PeftModel.from_pretrained"),
        (ll.BitFitConfig(new_biases=True), "lora-lab", "ll.load_adapter(model, "),
    ],
    ids=["IA3", "BitFit"],
)
def test_other_methods_have_a_card_that_says_who_reads_them(config, library, line):
    model = tiny("llama")
    ll.attach(model, config)
    text = model_card(model, base=BASE)
    front, _ = parts(text)
    assert front["library_name"] == library
    assert "lora" not in front["tags"]
    assert front["base_model"] == "owner/some-base"
    assert line in text
    assert rows(text)["method"] == [config.method]
    assert type(config).__name__ in text
