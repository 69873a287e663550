"""A disk that takes no more, whoever notices it: one line with path and remedy, and nothing lost.

The kernel's own limit of a file's size stands for the disk: it takes a part, then refuses.
"""

from __future__ import annotations

import contextlib
import errno
import os

import pytest
import torch
from safetensors import SafetensorError

import lora_lab as ll
from lora_lab._util.files import disk_errors, disk_reason
from lora_lab.checkpoint.loralib_models import save_loralib
from lora_lab.errors import AdapterError, ModelError, RunError
from lora_lab.models import embedded
from lora_lab.models.entries import Wheel
from lora_lab.runs.checkpoints import folders
from lora_lab.runs.records import list_runs
from tests.helpers.tiny_run import tiny_lm, tiny_task

resource = pytest.importorskip("resource")
LORA = ll.LoraConfig(r=16, target_modules="all-linear")
FULL = "cannot write {}: File too large; raise the limit (ulimit -f) or choose another folder"


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@contextlib.contextmanager
def files_of_at_most(count: int):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


VERBS = {
    "save_adapter": lambda lm, place: ll.save_adapter(lm.model, place),
    "export_uniform": lambda lm, place: ll.export_uniform(lm.model, place),
    "export_merged": lambda lm, place: ll.export_merged(lm.model, place, tokenizer=lm.tokenizer),
    "push_ready": lambda lm, place: ll.push_ready(lm.model, place),
    "safetensors": lambda lm, place: save_loralib(lm.model, place.with_suffix(".safetensors")),
    "pt": lambda lm, place: save_loralib(lm.model, place.with_suffix(".pt")),
}


@pytest.mark.parametrize("verb", VERBS)
def test_what_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path, verb):
    lm, place = tiny_lm(), tmp_path / "out"
    ll.attach(lm.model, LORA)
    with files_of_at_most(8_000), pytest.raises(AdapterError) as caught:
        VERBS[verb](lm, place)
    named = place.with_suffix(f".{verb}") if verb in ("safetensors", "pt") else place
    assert str(caught.value) == FULL.format(named)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("beside", [False, True])
def test_the_older_adapter_stays_where_the_new_one_is_too_large(tmp_path, beside):
    lm, place = tiny_lm(), tmp_path / "adapter"
    ll.attach(lm.model, ll.LoraConfig(r=1, target_modules=["q"]))
    ll.save_adapter(lm.model, place)
    if beside:
        (place / "README.md").write_text("mine")
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    ll.detach(lm.model)
    ll.attach(lm.model, LORA)
    with files_of_at_most(8_000), pytest.raises(AdapterError, match="File too large"):
        ll.save_adapter(lm.model, place)
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before


# bytes: the safetensors library fails first, or torch.save, which has no number to tell
@pytest.mark.parametrize(("most", "why"), [(20_000, "File too large"), (250_000, "only a part")])
def test_a_run_whose_checkpoint_does_not_fit_goes_on_from_the_one_before(tmp_path, most, why):
    settings = {"max_steps": 6, "save_steps": 2, "eval_examples": 0, "max_length": 64}

    def begin(where, **more):
        return ll.train(
            tiny_lm(), tiny_task(), ll.FullConfig(), output_dir=where, **settings, **more
        )

    alone = begin(tmp_path / "alone").result(60)
    run = begin(tmp_path / "full", start=False)
    log, limited = run.store.log, contextlib.ExitStack()

    def limiting(row):
        log(row)
        if row["step"] == 3:
            limited.enter_context(files_of_at_most(most))

    run.store.log = limiting
    with limited, pytest.raises(RunError, match=rf"cannot write .*step-4: .*{why}.*; (raise|free)"):
        run.start().result(60)
    assert [step for step, _ in folders(run.folder)] == [2]
    (record,) = list_runs(tmp_path / "full")
    assert record.state == "failed"
    assert ll.resume(record, tiny_lm(), tiny_task()).result(60).losses == alone.losses


def test_the_systems_words_are_found_in_everybodys(tmp_path):
    quota = os.strerror(errno.EDQUOT)
    assert disk_reason(OSError(errno.EDQUOT, quota)) == quota
    error = SafetensorError(
        f"Error while serializing: I/O error: {quota} (os error {errno.EDQUOT})"
    )
    assert disk_reason(error) == quota
    assert disk_reason(Exception("No space left on device (os error 28)")) == os.strerror(28)
    own = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 640 vs 598")
    assert disk_reason(own) == "the disk took only a part of it"
    stream = RuntimeError("basic_ios::clear: iostream error")
    assert disk_reason(stream) == "the disk took only a part of it"
    assert disk_reason(RuntimeError("CUDA out of memory")) is None
    assert disk_reason(ValueError("no number")) is None
    line = f"^cannot write {tmp_path}: {quota}; free some space or choose another output_dir$"
    with pytest.raises(RunError, match=line), disk_errors(tmp_path):
        raise error


def test_a_cache_that_takes_no_model_says_so(tmp_path, monkeypatch):
    source = tmp_path / "some.gguf"
    source.write_bytes(b"weights")
    monkeypatch.setenv("LORA_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(embedded, "find_wheel_file", lambda _: source)

    def convert(_, folder):
        lm = tiny_lm()
        lm.model.save_pretrained(folder)

    monkeypatch.setattr(embedded, "dequantize", convert)
    wheel = Wheel("some", "1", "some", "some.gguf", embedded._digest(source))
    line = r"cannot be written \(File too large\); set LORA_LAB_CACHE"
    with files_of_at_most(8_000), pytest.raises(ModelError, match=line):
        embedded.model_folder(wheel)
    folder = embedded.model_folder(wheel)
    assert folder is not None
    assert (folder / "model.safetensors").is_file()
    assert [p for p in folder.parent.iterdir() if p.suffix != ".lock"] == [folder]
