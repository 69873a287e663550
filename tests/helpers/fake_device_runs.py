"""Every method on a device that does not exist: what goes wrong there, or only there.

    python -m tests.helpers.fake_device_runs [MODEL] [METHOD]

prints {case: what is wrong, a line each}, and without a model also what is said where a fault is
planted.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import sys
import traceback
import warnings
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import Tensor
from transformers import masking_utils

import lora_lab as ll
from lora_lab._util import hardware
from lora_lab._util.hardware import Hardware
from lora_lab._util.own_random import OwnRandom
from lora_lab.budget.meter import Meter
from lora_lab.errors import AdapterError
from lora_lab.models.load import LoadedModel
from lora_lab.runs.training_config import TrainingConfig
from lora_lab.training import saved_state, trainer
from lora_lab.training.data import RunData
from lora_lab.training.kept import Kept, kept_parts
from lora_lab.training.last_good import LastGood
from lora_lab.training.observer import Observer
from lora_lab.training.padding import Padding
from lora_lab.training.progress import Pace
from tests.helpers.fake_device import DEVICES, KIND, FakeDevice, put, twin
from tests.helpers.fake_device_cases import DTYPES, FAULTS, METHODS, MODELS, STEPS, TWO
from tests.helpers.fake_faults import plant
from tests.helpers.tiny_classes import framing_tokenizer, tiny_classes
from tests.helpers.tiny_models import tiny
from tests.helpers.tiny_run import tiny_task
from tests.helpers.tiny_seq2seq import framing_tokenizer as closing_tokenizer
from tests.helpers.tiny_seq2seq import uneven_task
from tests.helpers.tiny_text import tiny_tokenizer

# How often a step may wait, by the function that asks.
_ONCE_A_STEP = {
    "before_update": 1,  # the step's own numbers
    # transformers looks whether a batch is padded, once a stack; so it does for everybody.
    "_ignore_causal_mask_sdpa": 1,
    "_ignore_bidirectional_mask_sdpa": 2,
}
_ONCE_A_CUT = {"strongest": 1}  # AdaLoRA ranks what all layers have scored
_ONCE_A_RUN = {
    "_moved": 1,  # the first update is looked at
    "gather": 99,  # AdaLoRA's last cut: numbers from the host, one list a site
}


def prepared(kind: str, layers: int) -> tuple[LoadedModel, Any]:
    """Return a tiny model of a kind, with a task for it."""
    match kind:
        case "bert":
            model = tiny(kind, vocab_size=259, num_labels=2, num_hidden_layers=layers)
            return LoadedModel.given(model, framing_tokenizer(), kind), tiny_classes(4, 1)
        case "t5":
            sizes = {"num_layers": layers, "num_decoder_layers": layers}
            model = tiny(kind, vocab_size=259, eos_token_id=2, **sizes)
            return LoadedModel.given(model, closing_tokenizer(), kind), uneven_task(4, 1)
        case "gpt2":
            model = tiny(kind, vocab_size=259, n_layer=layers)
        case _:
            model = tiny(kind, vocab_size=259, num_hidden_layers=layers)
    return LoadedModel.given(model, tiny_tokenizer(), kind), tiny_task(4, 1)


class Case:
    """One method on one model.

    Attributes:
        wrong: what is, a line each.
    """

    def __init__(self, kind: str, method: str, dtype: str, two: bool = False) -> None:
        self.kind = kind
        self.method = method
        self.dtype = getattr(torch, dtype)
        self.two = two
        self.wrong: list[str] = []
        self._device = FakeDevice()
        self._once: Counter[str] = Counter(_ONCE_A_RUN)

    def run(self) -> list[str]:
        """Do all of it; return what is wrong."""
        stage: Any = self.build
        try:
            # A backend in Python has autograd's thread for one device only.
            with self._device, torch.autograd.set_multithreading_enabled(False):
                for stage in (self.build, self.attach, self.train, self.look, self.merge, self.mix):
                    stage()
                self.detach()
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            inner = next((f for f in reversed(frames) if "/lora_lab/" in f.filename), frames[-1])
            place = f"{inner.filename.rpartition('/lora_lab/')[2]}:{inner.lineno}"
            text = str(error).partition("\n")[0][:300]
            self.wrong.append(f"{stage.__name__}: {type(error).__name__} at {place}: {text}")
        return self.wrong

    def build(self) -> None:
        """Put a model where it belongs."""
        self.lm, self.task = prepared(self.kind, layers=2 if self.two else 1)
        self.model: Any = self.lm.model
        # The second block of a stack is on the second device.
        blocks = [p for p, _ in self.model.named_modules() if self.two and p.endswith(".1")]
        blocks = [p for p in blocks if p.rpartition(".")[0].endswith(("layers", "h", "layer"))]
        blocks += ["encoder.block.1", "decoder.block.1"] if self.two and self.kind == "t5" else []
        self.far = tuple(p for p in blocks if not p.endswith((".layer.1",)) or self.kind == "bert")
        put(self.model, self.dtype, self.place)
        if self.two:
            for path, module in self.model.named_modules():
                add_hook_to_module(module, _Placed(self.place(path), io_same_device=not path))
        self.before = self.weights()
        self.training = TrainingConfig(
            max_steps=STEPS, per_device_train_batch_size=2, warmup_steps=0, loraplus_lr_ratio=2
        )
        self.data = RunData(self.lm, self.task, self.training, [])

    def place(self, path: str) -> torch.device:
        """Return the device of a module."""
        return DEVICES[any(f"{path}.".startswith(f"{block}.") for block in self.far)]

    def attach(self) -> None:
        """What is learned lies beside what it is learned for."""
        batches = self.data.first_batches(1)
        self.adapter = ll.attach(self.model, METHODS[self.method], batches=batches)
        for name, tensor in (*self.model.named_parameters(), *self.model.named_buffers()):
            device = self.place(name.rpartition(".")[0])
            # PreLayer's tokens join what enters a block, which comes from the device before it.
            if tensor.device != device and not name.endswith("tokens.vectors"):
                self.wrong.append(f"attach: {name} is on {tensor.device}, not on {device}")

    def train(self) -> None:
        """Two steps, each watched, with a checkpoint of the last one."""
        last_good = LastGood(self.model, self.adapter)
        last_good.keep(0)
        last_good.confirm()
        self.fit = trainer.Fit(
            model=self.model,
            adapter=self.adapter,
            examples=self.data.training_examples(),
            collate=self.data.family.collate,
            training=self.training,
            folder=Path(),
            meter=Meter(self.model),
            on_step=self._step_done,
            loss=self.data.family.loss,
        )
        step = trainer._Loop._step

        def watched(loop: Any, number: int, passes: list[Any]) -> Any:
            with self._device.watched() as found:
                took = step(loop, number, passes)
            self._judge(number, found)
            return took

        trainer._Loop._step = watched
        try:
            self.fit.run()
        finally:
            trainer._Loop._step = step
        learned = self.adapter.snapshot()
        last_good.restore()
        self.adapter.restore(learned)

    def _judge(self, number: int, found: list[Any]) -> None:
        allowed = Counter(_ONCE_A_STEP)
        if self.method == "AdaLoRA":
            allowed.update(_ONCE_A_CUT)
        for finding in found:
            for left in (allowed, self._once):
                if left[finding.function] > 0:
                    left[finding.function] -= 1
                    break
            else:
                self.wrong.append(f"step {number}: {finding}")

    def _step_done(self, step: trainer.Step) -> bool:
        if step.number < STEPS:
            return False
        worker: Any = SimpleNamespace(
            fit=self.fit,
            adapter=self.adapter,
            model=self.model,
            metrics={},
            intervals={},
            evaluations=SimpleNamespace(state=dict),
            kept=SimpleNamespace(state=dict),
            recorder=SimpleNamespace(last_step=None),
            run=SimpleNamespace(samples=(), store=SimpleNamespace(flush_log=int)),
            pace=Pace(),
            padding=Padding(),
        )
        saved_state.check_numbers(self.model, self.adapter)
        state = {"step": 2, **saved_state.checkpoint_state(worker)}  # as a store reads it
        for name, tensor in state["adapter"].items():
            if tensor.device.type != "cpu":
                self.wrong.append(f"checkpoint: {name} is on {tensor.device}")
        saved_state.load_state(self.model, self.adapter, state)
        self.fit.meter.reading()
        with TemporaryDirectory() as folder:
            ll.save_adapter(self.model, folder)
        return False

    def look(self) -> None:
        """What the panels are told of a step; one model's answers too."""
        recorder: Any = SimpleNamespace(due=lambda _: False, keep=lambda _: None)
        watched = next(iter(self.adapter.sites), None)
        with torch.no_grad():
            Observer(self.adapter, recorder).observe(1, watched, now=True)
        if self.method == "LoRA" and self.dtype == torch.float32 and not self.two:
            self.data.evaluate(adapted=True)
            self.data.evaluate_quickly(lambda _: None)
            run: Any = SimpleNamespace(
                lm=self.lm,
                task=self.task,
                training=self.training,
                configs=(),
                notes=[],
                resumes=None,
            )
            Kept(self.model, kept_parts(run), self.training, []).begin(lambda _: None)

    def merge(self) -> None:
        """There and back; some methods say that they cannot."""
        try:
            ll.merge(self.model)
        except AdapterError as error:
            if "cannot be merged" in str(error) or "leave the adapter beside" in str(error):
                return
            raise
        with torch.no_grad():
            self.model(**self.inputs(1))
        ll.unmerge(self.model)

    def mix(self) -> None:
        """A batch of three: with the adapter, without one, with another one."""
        other = ll.LoraConfig(r=3, target_modules=["q", "down"])
        ll.attach(self.model, other, "other", activate=False)
        try:
            with ll.mixed_batch(self.model, ["default", None, "other"]), torch.no_grad():
                self.model(**self.inputs(3))
        except AdapterError as error:
            if "whole batches only" not in str(error):
                raise

    def detach(self) -> None:
        """The model is what it was, bit for bit."""
        ll.detach(self.model)
        after = self.weights()
        changed = [
            name for name, weight in self.before.items() if not torch.equal(after[name], weight)
        ]
        self.wrong += [f"detach: {name} is not what it was" for name in changed]

    def weights(self) -> dict[str, Tensor]:
        """Return copies of the model's parameters, on the CPU."""
        return {name: twin(p).detach().clone() for name, p in self.model.named_parameters()}

    def inputs(self, rows: int) -> dict[str, Tensor]:
        """Return a batch on the device, without labels."""
        ids = torch.arange(3, 3 + rows * 5).reshape(rows, 5).to(DEVICES[0])
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return batch | ({"decoder_input_ids": ids} if self.kind == "t5" else {})


class _Placed(AlignDevicesHook):
    """What `device_map` puts on a module that lies on its device already."""

    def init_hook(self, module: Any) -> Any:
        return module


def set_up() -> None:
    """Have the fake device pass for a GPU, in this process."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    hardware.MAKERS[KIND] = lambda device: Hardware(
        device, native_bfloat16=True, fast_float16=True, fused_optimizer=True, asynchronous=True
    )
    OwnRandom.generator = _generator
    # Elsewhere fake tensors have no values, and are passed by.
    masking_utils.is_tracing = lambda *_: False
    for name, module in list(sys.modules.items()):
        if name.startswith("lora_lab.methods") and hasattr(module, "FakeTensor"):
            module.FakeTensor = ()


def _generator(random: Any, device: torch.device) -> torch.Generator:
    """Return a generator of the CPU's kind: a backend in Python cannot have its own."""
    made: dict[str, torch.Generator] = random._generators
    name = random._name(device)
    return made.setdefault(name, torch.Generator().manual_seed(random._seed))


def cases_of(model_and_method: tuple[str, str]) -> dict[str, list[str]]:
    """Return {case: what is wrong} of one method on one kind of model."""
    kind, method = model_and_method
    found = {dtype: Case(kind, method, dtype).run() for dtype in DTYPES}
    found[TWO] = Case(kind, method, "float32", two=True).run()
    return {f"{kind}, {method}, {what}": wrong for what, wrong in found.items()}


def fault_found(name: str) -> dict[str, list[str]]:
    """Return {fault: what is wrong} with the fault planted, for good."""
    plant(name)
    return {name: Case("llama", "LoRA", "bfloat16").run()}


def main(kind: str | None = None, method: str | None = None) -> None:
    """Print what is wrong, in two processes; each fault is planted in one of its own."""
    set_up()
    fork = multiprocessing.get_context("fork")
    kinds, methods = [kind] if kind else MODELS[::-1], [method] if method else METHODS
    with fork.Pool(2) as pool:
        found = pool.map(cases_of, itertools.product(kinds, methods), chunksize=1)
    if kind is None:
        with fork.Pool(2, maxtasksperchild=1) as pool:
            found += pool.map(fault_found, FAULTS, chunksize=1)
    print(json.dumps({case: wrong for each in found for case, wrong in each.items()}, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
