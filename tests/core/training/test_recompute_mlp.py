"""Recomputed MLPs: the same numbers bit for bit, less kept."""

import pytest
import torch

import lora_lab as ll
from lora_lab.budget.meter import LiveStorages
from lora_lab.errors import ConfigError
from lora_lab.training.recompute_mlp import recomputed_mlps
from tests.helpers.tiny_models import tiny, tiny_inputs
from tests.helpers.tiny_run import CONFIG, tiny_lm, tiny_task


def adapted(name="llama", dtype=torch.float32, **changes):
    model = tiny(name).to(dtype).train()
    torch.manual_seed(0)
    config = ll.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, **changes)
    return model, ll.attach(model, config)


def step(model, adapter):
    for parameter in adapter.parameters():
        parameter.grad = None
    torch.manual_seed(1)
    logits = model(**tiny_inputs(model)).logits
    logits.float().pow(2).sum().backward()
    return [logits.detach(), *(p.grad.clone() for p in adapter.parameters())]


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_and_gradients_are_the_same_bit_for_bit(name, dtype):
    model, adapter = adapted(name, dtype)
    plain = step(model, adapter)
    with recomputed_mlps(model) as count:
        assert count == len(model.model.layers)
        again = step(model, adapter)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


@pytest.mark.parametrize("changes", [{"lora_dropout": 0.5}, {"use_dora": True}])
def test_variants_and_dropout_too(changes):
    model, adapter = adapted(**changes)
    plain = step(model, adapter)
    with recomputed_mlps(model):
        assert all(torch.equal(a, b) for a, b in zip(plain, step(model, adapter), strict=True))


def test_two_wide_tensors_are_kept_instead_of_four():
    model, _ = adapted()
    mlp = model.model.layers[0].mlp
    x = torch.randn(4, 8, model.config.hidden_size, requires_grad=True)
    wide = 4 * 8 * model.config.intermediate_size * 4  # N·d_ff float32, in bytes

    def live(forward):
        counter = LiveStorages([*(p.detach() for p in model.parameters()), x.detach()])
        before = counter.live
        with counter:
            y = forward(x)
        return counter.live - before, y

    plain, y = live(mlp)
    with recomputed_mlps(model):
        less, z = live(mlp)
    assert torch.equal(y, z)
    assert plain - less == 2 * wide


def test_gradient_checkpointing_and_autocast_give_the_same():
    model, adapter = adapted()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    plain = step(model, adapter)
    with recomputed_mlps(model):
        assert all(torch.equal(a, b) for a, b in zip(plain, step(model, adapter), strict=True))
    model.gradient_checkpointing_disable()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = step(model, adapter)
        with recomputed_mlps(model):
            assert all(torch.equal(a, b) for a, b in zip(plain, step(model, adapter), strict=True))


def test_the_classes_are_back_afterwards_also_after_an_error():
    model, _ = adapted()
    classes = [type(module) for module in model.modules()]
    with pytest.raises(RuntimeError), recomputed_mlps(model):
        raise RuntimeError
    assert [type(module) for module in model.modules()] == classes


def test_a_model_without_gated_mlps_is_refused():
    model, _ = adapted("gpt2")
    with pytest.raises(ConfigError, match="has no MLP of the form"), recomputed_mlps(model):
        pass


def test_a_run_trains_the_same_with_it(tmp_path):
    losses = []
    for recompute in (False, True):
        run = ll.train(
            tiny_lm(),
            tiny_task(),
            CONFIG,
            output_dir=tmp_path,
            max_steps=3,
            eval_examples=0,
            recompute_mlp=recompute,
        )
        run.wait()
        losses.append(run.losses)
    assert losses[0] == losses[1]
