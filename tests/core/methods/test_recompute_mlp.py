"""Recomputed MLPs: the same numbers bit for bit, less kept."""

import copy
import pickle

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import lora_lab as ll
from lora_lab.anatomy.api import anatomy
from lora_lab.budget.meter import LiveStorages
from lora_lab.errors import ConfigError
from lora_lab.methods.own_modes import OwnModes
from lora_lab.methods.recompute_mlp import recomputed_mlps
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


def test_a_model_without_gated_mlps_is_as_ever_and_refused_where_it_is_asked_for():
    model, _ = adapted("gpt2")
    with recomputed_mlps(model) as count:
        assert count == 0
    with pytest.raises(ConfigError, match="has no MLP of the form"), recomputed_mlps(model, True):
        pass
    with recomputed_mlps(adapted()[0], False) as count:
        assert count == 0


class Silu(TorchDispatchMode):
    """Counts how often SiLU is computed."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten.silu.default
        return func(*args, **(kwargs or {}))


def test_each_function_is_computed_once_more_where_the_product_is_read_too():
    model, adapter = adapted()
    layers = len(model.model.layers)
    with recomputed_mlps(model), Silu() as seen:
        step(model, adapter)
    assert seen.count == 2 * layers


def drops(act):
    return torch.nn.Sequential(act, torch.nn.Dropout(0.5))


@pytest.mark.parametrize("make", [drops, lambda _: torch.nn.RReLU(), lambda _: torch.nn.ReLU()])
def test_functions_that_draw_or_keep_what_they_return_are_as_ever(make):
    model, adapter = adapted()
    for layer in model.model.layers:
        layer.mlp.act_fn = make(layer.mlp.act_fn)
    plain = step(model, adapter)
    with recomputed_mlps(model, True) as count:
        assert count == 0
        assert all(torch.equal(a, b) for a, b in zip(plain, step(model, adapter), strict=True))


def test_who_listens_to_the_function_hears_it_once_and_may_change_what_it_returns():
    model, adapter = adapted()
    heard = []
    for layer in model.model.layers:
        layer.mlp.act_fn.register_forward_hook(lambda *_: heard.append(1) or 2 * _[-1])
    plain = step(model, adapter)
    with recomputed_mlps(model):
        assert all(torch.equal(a, b) for a, b in zip(plain, step(model, adapter), strict=True))
    assert len(heard) == 2 * len(model.model.layers)


def test_the_classes_look_and_copy_as_ever():
    model, _ = adapted()
    shown = repr(model)
    with recomputed_mlps(model), OwnModes(model).here():
        assert repr(model) == shown
        copies = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
        assert anatomy(model).shape.block.recomputes_mlp
    ids = tiny_inputs(model)
    for other in copies:
        assert type(other.model.layers[0].mlp) is type(model.model.layers[0].mlp)
        assert torch.equal(other(**ids).logits, model(**ids).logits)


def test_second_derivatives_and_function_transforms_are_as_ever():
    model, _ = adapted()
    mlp = model.model.layers[0].mlp
    x = torch.randn(2, 3, model.config.hidden_size, requires_grad=True)

    def found():
        with ll.twice_differentiable():
            (slope,) = torch.autograd.grad(mlp(x).pow(2).sum(), x, create_graph=True)
            (second,) = torch.autograd.grad(slope.pow(2).sum(), x)
        return slope, second, torch.func.grad(lambda v: mlp(v).pow(2).sum())(x)

    plain = found()
    with recomputed_mlps(model):
        assert all(torch.equal(a, b) for a, b in zip(plain, found(), strict=True))


def test_a_compiled_model_keeps_its_classes():
    model, _ = adapted()
    model.model.layers[0].mlp = torch.compile(model.model.layers[0].mlp)
    with recomputed_mlps(model) as count:
        assert count == 0


def test_a_run_trains_the_same_with_it_and_does_so_by_itself(tmp_path):
    runs = {
        recompute: ll.train(
            tiny_lm(),
            tiny_task(),
            CONFIG,
            output_dir=tmp_path,
            max_steps=3,
            eval_examples=0,
            recompute_mlp=recompute,
        )
        for recompute in (False, True, None)
    }
    for run in runs.values():
        run.wait()
    assert runs[False].losses == runs[True].losses == runs[None].losses
    peaks = {recompute: run.snapshot.memory.peak for recompute, run in runs.items()}
    assert peaks[None] == peaks[True] < peaks[False]
