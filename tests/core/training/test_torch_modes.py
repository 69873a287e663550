"""Whatever torch is set to around `train`, `attach` and `load_model`: the same, or one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import lora_lab as ll
from lora_lab.errors import ConfigError
from tests.helpers.tiny_files import tiny_model_folder
from tests.helpers.tiny_run import CONFIG, logits, tiny_lm, tiny_task

pytestmark = pytest.mark.usefixtures("one_thread")


@contextlib.contextmanager
def default(kind: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(kind)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def default_device(name: str) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


def entered(*modes: Any) -> Any:
    stack = contextlib.ExitStack()
    for mode in modes:
        stack.enter_context(mode)
    return stack


MODES: dict[str, Any] = {
    "inference mode, meta": lambda: entered(torch.inference_mode(), default_device("meta")),
    "autocast, bfloat16": lambda: entered(
        torch.autocast("cpu", torch.bfloat16), default(torch.bfloat16)
    ),
    "no grad, float64": lambda: entered(torch.no_grad(), default(torch.float64)),
    "with meta": lambda: torch.device("meta"),
    "cuda": lambda: default_device("cuda"),  # which this torch may not have
}
CONFIGS = {
    "LoRA": CONFIG.replace(target_modules=["embed_tokens", "q"]),
    "EVA": CONFIG.replace(init_lora_weights="eva"),
    "AdaLoRA": ll.AdaLoraConfig(target_r=2, init_r=3, tinit=0, tfinal=0, deltaT=1),
    "PreLayer": ll.PrefixLayerConfig(2, 1),
    "Adapter^H": ll.BottleneckConfig("H", r=3),
}
QUICK: Any = {"max_steps": 2, "eval_examples": 1, "max_length": 32, "learning_rate": 1e-2}
alone: dict[str, Any] = {}


def trained(method: str, folder: Any) -> Any:
    run = ll.train(tiny_lm(), tiny_task(8, 1), CONFIGS[method], output_dir=folder, **QUICK)
    result = run.result(60)
    return result.losses, result.metrics, {p.dtype for p in run.adapter.parameters()}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", CONFIGS)
def test_a_run_takes_the_same_steps(tmp_path, method, mode):
    if method not in alone:
        alone[method] = trained(method, tmp_path)
    lm = tiny_lm()
    with MODES[mode]():
        run = ll.train(lm, tiny_task(8, 1), CONFIGS[method], output_dir=tmp_path, **QUICK)
        result = run.result(60)
    found = result.losses, result.metrics, {p.dtype for p in run.adapter.parameters()}
    assert found == alone[method]
    assert found[2] == {torch.float32}


@pytest.mark.parametrize("mode", MODES)
def test_files_are_written_read_and_merged_alike(tmp_path, mode):
    lm = tiny_lm()
    run = ll.train(lm, tiny_task(8, 1), CONFIG, output_dir=tmp_path, **QUICK)
    run.result(60)
    expected = logits(lm.model)
    fresh = tiny_lm().model
    with MODES[mode]():
        folder = run.save(tmp_path / "saved")
        ll.load_adapter(fresh, folder)
    assert torch.equal(logits(fresh), expected)
    assert all(p.requires_grad for p in ll.attached(fresh)["default"].parameters())
    ll.merge(lm.model)
    with MODES[mode]():
        ll.merge(fresh)
    assert torch.equal(logits(fresh), logits(lm.model))
    with MODES[mode]():
        ll.unmerge(fresh)
    assert torch.equal(logits(fresh), expected)


@pytest.mark.parametrize("mode", MODES)
def test_a_model_is_loaded_as_it_is_in_the_file(tmp_path, mode):
    folder = tiny_model_folder(tmp_path / "model")
    expected = ll.load_model(folder, "cpu").model.state_dict()
    with MODES[mode]():
        model = ll.load_model(folder, "cpu").model
    assert not any(tensor.is_inference() for tensor in model.state_dict().values())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
        assert tensor.dtype == expected[name].dtype


def test_a_model_made_in_inference_mode_is_one_line(tmp_path):
    with torch.inference_mode():
        lm = tiny_lm()
    said = r"^model.embed_tokens.weight was made within torch.inference_mode\(\), so that nothing"
    with pytest.raises(ConfigError, match=said):
        ll.train(lm, tiny_task(), CONFIG, output_dir=tmp_path / "runs")
    with pytest.raises(ConfigError, match=said):
        ll.attach(lm.model, CONFIG)
    assert ll.attached(lm.model) == {}
    assert not (tmp_path / "runs").exists()
