"""Run folders that came from somebody else: nothing of this machine is read because they say so."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import lora_lab as ll
from lora_lab.errors import LoraLabError, RunError
from lora_lab.runs import signature
from lora_lab.runs.records import list_runs
from lora_lab.runs.run_file import RunConfig
from lora_lab.tasks import load_task
from lora_lab.training.api import make_run
from lora_lab.training.epochs import settle_steps
from lora_lab.training.resume import path_in, resume
from tests.helpers.run_configs import rewrite
from tests.helpers.tiny_files import tiny_recipe
from tests.helpers.tiny_run import tiny_lm, tiny_task

MUTATIONS = 200


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_LAB_CACHE", str(tmp_path / "cache"))


def stopped_run(folder: Path) -> Path:
    """The folder of a run on a model's folder and a data file; half-way."""
    recipe = tiny_recipe(folder)
    recipe["training"] |= {"max_steps": 100_000, "eval_examples": 0}
    run = make_run(RunConfig.from_dict(recipe)).start()
    while run.snapshot.step < 3:
        run.wait(0.01)
    run.stop()
    run.result(60)
    return run.folder


def change(folder: Path, **sources) -> None:
    rewrite(folder, lambda config: config["sources"].update(sources))


def opens_nothing(monkeypatch) -> None:
    for where in ("lora_lab.models.load.load_model", "lora_lab.tasks.load.load_task"):
        monkeypatch.setattr(where, lambda *_, **__: pytest.fail("it was opened"))


def test_ones_own_run_finds_its_files_again(tmp_path):
    folder = stopped_run(tmp_path)
    assert resume(folder, start=False).task.name == "task.csv"
    key = tmp_path / "cache" / "origin.key"
    assert key.stat().st_mode & 0o077 == 0, "nobody else may read it"
    text = key.read_bytes().hex()
    assert not any(text in p.read_text(errors="ignore") for p in folder.rglob("*") if p.is_file())


def test_the_files_that_a_strangers_run_names_are_not_opened(tmp_path, monkeypatch):
    folder = stopped_run(tmp_path)
    lm = ll.load_model(tmp_path / "model", device="cpu")
    task = load_task(tmp_path / "task.csv", prompt="prompt", completion="completion")
    monkeypatch.setenv("LORA_LAB_CACHE", str(tmp_path / "cache of somebody else"))
    with monkeypatch.context() as patched:
        opens_nothing(patched)
        with pytest.raises(RunError, match=r"was not begun by your LoRA Lab.*resume\(…, lm=") as e:
            resume(folder)
        assert repr(str(tmp_path / "model")) in str(e.value)
        assert "\n" not in str(e.value)
        with pytest.raises(RunError, match=r"names as its task.*resume\(…, task=load_task\(…\)\)"):
            resume(folder, lm)
    assert resume(folder, lm, task, start=False).id == folder.name


@pytest.mark.parametrize(
    "sources",
    [
        {"task": {"name": "/etc/passwd", "prompt": "a", "completion": "b"}},
        {"task": {"name": "../../secret.csv", "prompt": "a", "completion": "b"}},
        {"task": {"name": "mini-e2e", "validation": "/etc/passwd"}},
        {"task": {"name": "owner/rows.jsonl", "prompt": "a", "completion": "b"}},
        {"model": {"name": "/etc"}, "task": {"name": "mini-e2e"}},
        {"model": {"name": "~/.ssh"}, "task": {"name": "mini-e2e"}},
        {"model": {"name": "//server/share"}, "task": {"name": "mini-e2e"}},
    ],
)
def test_a_path_that_was_written_into_ones_own_run_is_not_opened_either(
    tmp_path, monkeypatch, sources
):
    folder = stopped_run(tmp_path)
    lm = ll.load_model(tmp_path / "model", device="cpu")
    change(folder, **sources)
    opens_nothing(monkeypatch)
    with pytest.raises(RunError, match="was not begun by your LoRA Lab"):
        resume(folder, None if "model" in sources else lm)


def test_public_names_are_no_paths_unless_something_here_is_called_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for what, name in (
        ("model", "smollm2-135m"),
        ("model", "HuggingFaceTB/SmolLM2-135M"),
        ("task", "mini-e2e"),
        ("task", "owner/name"),
    ):
        assert path_in(what, {"name": name}) is None
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert path_in("model", {"name": "owner/name"}) == "owner/name"
    for what, name in (("model", "mini-e2e"), ("task", "smollm2-135m"), ("task", "x.csv")):
        assert path_in(what, {"name": name}) == name
    assert path_in("task", {"name": ["x.csv", "y.csv"]}) == "x.csv"
    assert path_in("task", {"name": "owner/name", "validation": ["x.csv"]}) == "x.csv"


def test_where_no_key_can_be_kept_every_run_is_a_strangers(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LORA_LAB_CACHE", str(tmp_path / "file" / "below"))
    assert signature.signed({"sources": {"model": None}})["origin"] is None
    assert not signature.verify({"sources": {"model": None}, "origin": None})
    with pytest.raises(RunError, match="was not begun by your LoRA Lab"):
        resume(stopped_run(tmp_path / "run"))


def test_counting_a_strangers_epochs_anew_does_not_make_its_paths_ones_own(tmp_path):
    run = ll.train(
        tiny_lm(), tiny_task(), ll.LoraConfig(r=2), output_dir=tmp_path, start=False,
        num_train_epochs=1, eval_examples=0,
    )  # fmt: skip
    theirs = {"task": {"name": "/etc/passwd"}}
    run.store.write_config({"sources": theirs, "origin": None, "training": {}})
    settle_steps(run, 3)
    config = json.loads((run.folder / "config.json").read_text())
    assert (config["sources"], config["training"]["max_steps"]) == (theirs, 1)
    assert not signature.verify(config)


# Whatever stands in its files ---------------------------------------------------------------------

ODD = [None, True, -1, 10**30, "", "x", "../../up", "<img onerror=x>", [], [1], {}, {"name": 1}]
ODD += [{"name": "../x"}, {"class": "os.system"}, [[]], 1e308, "a\nb", {"": {"": {}}}]


def places(value: object, path: tuple = ()) -> Iterator[tuple]:
    """The path to everything within a JSON value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, own in pairs:
        yield (*path, key)
        if isinstance(own, (dict, list)):
            yield from places(own, (*path, key))


def mutate(folder: Path, rng: random.Random) -> str:
    """Change one file of a run's folder; say what was done."""
    names = ["config.json"] * 6 + ["summary.json", "sites.json", "metrics.jsonl", "lock.json"]
    path = folder / rng.choice(names)
    data = path.read_bytes()
    if path.name == "config.json" and rng.random() < 0.8:
        config = json.loads(data)
        place = rng.choice(list(places(config)))
        into = config
        for key in place[:-1]:
            into = into[key]
        into[place[-1]] = rng.choice(ODD)
        rewrite(folder, lambda own: own.update(config))
        return f"{place} = {into[place[-1]]!r}"
    cut = rng.randrange(len(data))
    junk = rng.choice([b"", b"[" * 50_000, b"null", b"\xff\xfe", b'{"step": "x", "loss": []}\n'])
    path.write_bytes(data[:cut] + junk + data[cut:] * rng.choice([0, 1]))
    return f"{path.name} with {junk[:10]!r} at {cut}"


@pytest.mark.parametrize("chunk", range(4))
def test_a_mutated_run_folder_is_listed_opened_and_resumed_or_refused_in_one_line(chunk, tmp_path):
    good = stopped_run(tmp_path)
    lm = ll.load_model(tmp_path / "model", device="cpu")
    task = load_task(tmp_path / "task.csv", prompt="prompt", completion="completion")
    before = set(tmp_path.iterdir())
    refused = 0
    for seed in range(chunk, MUTATIONS, 4):
        rng = random.Random(seed)
        runs = tmp_path / "mutated"
        folder = shutil.copytree(good, runs / "run")
        what = f"seed {seed}: {mutate(folder, rng)}"
        said = ""
        try:
            for record in list_runs(runs):
                str(record.state)
                record.open()
            assert resume(folder, *rng.choice([(), (lm,), (lm, task)]), start=False)
        except LoraLabError as error:
            said = str(error)
            refused += 1
        except Exception as error:
            raise AssertionError(what) from error
        assert "\n" not in said, what
        assert len(said) < 1_000, what
        shutil.rmtree(runs)
        assert set(tmp_path.iterdir()) == before, what
    assert 5 < refused < MUTATIONS // 4
