"""What only a GPU can show. Each skips without one; none needs the notebook packages."""

from __future__ import annotations

import copy

import pytest
import torch

import lora_lab as ll
from lora_lab.anatomy import Rows
from lora_lab.methods.lora.operator import lowrank_linear
from lora_lab.spectra.update import LowRankUpdate
from tests.helpers.tiny_models import tiny, tiny_inputs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
EVERYTHING = ll.LoraConfig(r=3, lora_alpha=6, target_modules="all-linear", init_lora_weights=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_operator_is_the_formula(dtype):
    torch.manual_seed(0)
    x, W = torch.randn(64, 96, device="cuda"), torch.randn(120, 96, device="cuda")
    rows = Rows(4, 30, 10, 10)
    A = torch.randn(8, 96, device="cuda", requires_grad=True)
    B = torch.randn(40, 8, device="cuda", requires_grad=True)
    y = lowrank_linear(x.to(dtype), W.to(dtype), None, [LowRankUpdate(A, B, 0.5, rows)])
    total = W.double()
    index = torch.tensor([g * 30 + 10 + i for g in range(4) for i in range(10)], device="cuda")
    total[index] += 0.5 * (B @ A).detach().double()
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}[dtype]
    exact = x.double() @ total.T
    assert ((y.double() - exact).norm() / exact.norm()).item() < tolerance
    y.float().sum().backward()
    assert A.grad is not None
    assert A.grad.dtype == torch.float32


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt-neox", "phi3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_detach_gives_back_every_bit(name, dtype):
    model = tiny(name).to("cuda", dtype)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    ll.attach(model, EVERYTHING)
    for _ in range(3):
        ll.merge(model)
        ll.unmerge(model)
    ll.detach(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_same_seed_gives_the_same_adapter_as_on_the_cpu():
    adapters = []
    for device in ("cpu", "cuda"):
        model = tiny("llama").to(device)
        torch.manual_seed(7)
        adapters.append(ll.attach(model, EVERYTHING))
    for path, site in adapters[0].sites.items():
        assert torch.equal(site.A, adapters[1].sites[path].A.cpu())


def test_gpu_and_cpu_agree_on_the_adapted_outputs():
    model = tiny("llama")
    ll.attach(model, EVERYTHING)
    twin = copy.deepcopy(model).cuda()
    batch = tiny_inputs(model)
    with torch.no_grad():
        here = model(**batch).logits
        there = twin(**{key: value.cuda() for key, value in batch.items()}).logits.cpu()
    torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_run_on_the_gpu_learns_and_meters_its_memory(tmp_path, checkpointing):
    from lora_lab.models import LoadedModel
    from lora_lab.tasks import Example, GenerationTask
    from tests.helpers.tiny_text import tiny_llama, tiny_tokenizer

    examples = [Example(f"say {word}", word, (word,)) for word in ("yes", "no", "maybe")] * 40
    task = GenerationTask("words", True, examples, examples[:3])
    lm = LoadedModel.given(tiny_llama().cuda(), tiny_tokenizer())
    run = ll.train(
        lm,
        task,
        ll.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"),
        output_dir=tmp_path,
        max_steps=60,
        learning_rate=1e-2,
        eval_examples=0,
        gradient_checkpointing=checkpointing,
    )
    result = run.result()
    losses = [loss for _, loss in result.losses]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert run.snapshot.memory.kind == "CUDA memory"
    assert run.snapshot.memory.peak >= run.snapshot.memory.current > 0
    ll.load_adapter(tiny_llama(), result.adapter_folder)
