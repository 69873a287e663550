"""Models within torch.compile's, DataParallel's and other wrappers: one model, any handle."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import lora_lab as ll
from lora_lab.anatomy.wrappers import module_at, modules_within, unwrapped
from lora_lab.errors import AdapterError, ConfigError, ModelError
from tests.helpers.lora_outputs import outputs, stirred
from tests.helpers.peft_files import tensors_of
from tests.helpers.tiny_models import tiny, tiny_inputs


def compiled(module):
    return torch.compile(module, backend="eager")  # nothing is compiled before it is called


def each_layer(wrap):
    def wrap_layers(model):
        for number, layer in enumerate(model.model.layers):
            model.model.layers[number] = wrap(layer)
        return model

    return wrap_layers


def backbone(model):
    model.model = compiled(model.model)
    return model


def one_matrix(model):
    model.model.layers[0].self_attn.q_proj = compiled(model.model.layers[0].self_attn.q_proj)
    return model


def in_place(model):
    for layer in model.model.layers:
        layer.compile(backend="eager")
    return model


WRAPPERS = {
    "compiled": compiled,
    "parallel": nn.DataParallel,
    "parallel, compiled": lambda model: compiled(nn.DataParallel(model)),
    "compiled, parallel": lambda model: nn.DataParallel(compiled(model)),
    "compiled layers": each_layer(compiled),
    "compiled in place": in_place,
    "compiled backbone": backbone,
    "a compiled matrix": one_matrix,
    "recomputed layers": each_layer(checkpoint_wrapper),
}
CONFIGS = {
    "LoRA": ll.LoraConfig(r=2, target_modules=["q", "v"], rank_pattern={"v": 3}),
    "whole modules": ll.LoraConfig(r=2, modules_to_save=["lm_head", "norm"]),
    "embedding": ll.LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"]),
    "Adapter^L": ll.BottleneckConfig("L", r=3),
    "PreLayer": ll.PrefixLayerConfig(2, 1),
    "BitFit": ll.BitFitConfig(new_biases=True),
    "several": [ll.LoraConfig(r=2), ll.BottleneckConfig("P", r=3)],
}


def answers(model):
    """What a model answers, whose wrappers have seen to it that nothing is compiled for that."""
    with torch.compiler.set_stance("force_eager"):
        return outputs(model, tiny_inputs(unwrapped(model)))


def files(folder):
    found = [path for path in sorted(folder.rglob("*.*")) if path.is_file()]
    read = {".safetensors": load_file, ".json": lambda path: path.read_text()}
    return {path.relative_to(folder): read[path.suffix](path) for path in found}


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("wrap", WRAPPERS)
def test_the_handle_is_the_model(wrap, config, tmp_path):
    bare, plain, handle = tiny("llama"), tiny("llama"), WRAPPERS[wrap](tiny("llama"))
    base = answers(bare)
    for number, model in enumerate((plain, handle)):
        torch.manual_seed(1)
        stirred(ll.attach(model, CONFIGS[config]))
        ll.save_adapter(model, tmp_path / str(number))
    want = answers(plain)
    assert not torch.allclose(want, base, atol=1e-4)
    torch.testing.assert_close(answers(handle), want)
    written, expected = (files(tmp_path / number) for number in "10")
    assert written.keys() == expected.keys()
    for path, content in expected.items():
        if isinstance(content, str):
            assert written[path] == content
        else:
            torch.testing.assert_close(written[path], content, rtol=0, atol=0)
    assert list(ll.attached(handle)) == ["default"]
    ll.activate(handle, None)
    assert torch.equal(answers(handle), base)
    ll.activate(handle, "default")
    try:
        ll.merge(handle)
    except AdapterError:  # neither a method that cannot
        with pytest.raises(AdapterError):
            ll.merge(plain)
    torch.testing.assert_close(answers(handle), want, rtol=1e-4, atol=1e-5)
    ll.unmerge(handle)
    ll.detach(handle)
    assert torch.equal(answers(handle), base)
    ll.load_adapter(handle, tmp_path / "0")
    torch.testing.assert_close(answers(handle), want)


def test_it_is_counted_read_and_exported_through_any_handle(tmp_path):
    plain, config = tiny("llama"), ll.LoraConfig(r=2)
    handle = nn.DataParallel(compiled(each_layer(compiled)(tiny("llama"))))
    assert ll.anatomy(handle).sites == ll.anatomy(plain).sites
    assert ll.anatomy(handle).weights == ll.anatomy(plain).weights
    sizes = {"batch_size": 2, "sequence_length": 8}
    assert ll.budget(handle, config, **sizes) == ll.budget(plain, config, **sizes)
    assert ll.dry_run(handle, config, **sizes).peak == ll.dry_run(plain, config, **sizes).peak
    for number, model in enumerate((plain, handle)):
        torch.manual_seed(1)
        stirred(ll.attach(model, config))
        ll.export_merged(model, tmp_path / str(number))
    merged, expected = (load_file(tmp_path / n / "model.safetensors") for n in "10")
    torch.testing.assert_close(merged, expected)
    with ll.mixed_batch(handle, ["default", None]):
        inputs = tiny_inputs(plain, batch=2)
        rows = outputs(unwrapped(handle), inputs)
    torch.testing.assert_close(rows[:1], outputs(plain, {"input_ids": inputs["input_ids"][:1]}))


class Pair(nn.Module):
    """Two matrices that dynamo has soon read."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.second(self.first(x).relu())


def test_what_was_compiled_before_notices_every_switch():
    model, x = Pair(), torch.ones(2, 4)
    base = model(x).detach()
    handle = compiled(model)
    assert torch.equal(handle(x), base)
    config = ll.LoraConfig(r=2, target_modules=["first", "second"], init_lora_weights=False)
    torch.manual_seed(1)
    ll.attach(handle, config, "a")
    ll.attach(handle, config, "b")
    found = {}
    for name in ("a", "b", None, "a"):
        ll.activate(handle, name)
        torch.testing.assert_close(handle(x), model(x))
        found[name] = handle(x).detach()
    assert not torch.allclose(found["a"], found["b"])
    assert torch.equal(found[None], base)
    ll.merge(handle)
    torch.testing.assert_close(handle(x), found["a"])
    ll.detach(handle)
    assert torch.equal(handle(x), base)
    ll.attach(handle, config, "c")
    torch.testing.assert_close(handle(x), model(x))
    handle(x).sum().backward()
    assert all(p.grad is not None for p in ll.attached(handle)["c"].parameters())
    torch._dynamo.reset()


# {what wrote it: the key, of PEFT's own}
KEYS = {
    "a compiled base": lambda key: key.replace("model.model.", "model._orig_mod.model.", 1),
    "a compiled PeftModel's state dict": lambda key: f"_orig_mod.{key}",
    "compiled layers": lambda key: key.replace(".self_attn", "._orig_mod.self_attn"),
    "checkpointed layers": lambda key: key.replace(
        ".self_attn", "._checkpoint_wrapped_module.self_attn"
    ),
    "FSDP's first version": lambda key: key.replace(
        "model.model.", "model._fsdp_wrapped_module.model.", 1
    ),
    "a parallel base": lambda key: key.replace("base_model.model.", "base_model.model.module.", 1),
    "a parallel PeftModel": lambda key: f"module.{key}",
    "both": lambda key: f"module._orig_mod.{key}",
    "both, the other way round": lambda key: f"_orig_mod.module.{key}",
}


@pytest.mark.parametrize("writer", KEYS)
def test_files_with_a_wrappers_prefix_are_read(writer, tmp_path):
    model = tiny("llama")
    ll.attach(model, ll.LoraConfig(r=2, target_modules=["q"], init_lora_weights=False))
    ll.save_adapter(model, tmp_path)
    tensors = {KEYS[writer](key): tensor for key, tensor in tensors_of(tmp_path).items()}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    for other in (tiny("llama"), compiled(tiny("llama")), each_layer(compiled)(tiny("llama"))):
        ll.load_adapter(other, tmp_path)
        torch.testing.assert_close(answers(other), answers(model))


def test_pefts_file_of_a_compiled_base_is_read(tmp_path):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=2,
        target_modules=["q_proj"],
        init_lora_weights=False,
        rank_pattern={"1.self_attn.q_proj": 3},
    )
    theirs = get_peft_model(compiled(tiny("llama")), config)
    theirs.save_pretrained(tmp_path)
    assert all("_orig_mod" in key for key in tensors_of(tmp_path)), "PEFT has changed its files"
    model = tiny("llama")
    ll.load_adapter(model, tmp_path)
    with torch.compiler.set_stance("force_eager"):
        want = outputs(theirs, tiny_inputs(model))
    torch.testing.assert_close(answers(model), want)


def test_a_model_with_a_child_called_module_keeps_its_name(tmp_path):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = Pair()

        def forward(self, x):
            return self.module(x)

    model, other = Own(), Own()
    ll.attach(model, ll.LoraConfig(r=2, target_modules=["first"], init_lora_weights=False))
    assert list(ll.attached(model)["default"].sites) == ["module.first"]
    ll.save_adapter(model, tmp_path)
    ll.load_adapter(other, tmp_path)
    x = torch.ones(2, 4)
    assert torch.equal(other(x), model(x))


def test_paths_are_those_without_wrappers():
    model = each_layer(compiled)(tiny("llama"))
    handle = nn.DataParallel(model)
    paths = [path for path, _ in tiny("llama").named_modules()]
    assert [path for path, _ in modules_within(handle)] == paths
    assert all(module_at(handle, path) is part for path, part in modules_within(handle))
    with pytest.raises(AttributeError, match=r"has no module 'x' \(model\.x\)"):
        module_at(handle, "model.x")


class FullyShardedDataParallel(nn.Module):
    """Torch's has its module under this name; a real one wants a device and other processes."""

    def __init__(self, module):
        super().__init__()
        self._fsdp_wrapped_module = module


class DeepSpeedEngine(nn.Module):
    """As DeepSpeed's, which is not installed here."""

    def __init__(self, module):
        super().__init__()
        self.module = module


def test_what_takes_the_parameters_away_is_refused_by_name(tmp_path):
    inside = tiny("llama")
    inside.model.layers[0] = FullyShardedDataParallel(inside.model.layers[0])
    for model in (FullyShardedDataParallel(tiny("llama")), inside):
        for call in (
            lambda m=model: ll.attach(m, CONFIGS["LoRA"]),
            lambda m=model: ll.anatomy(m),
            lambda m=model: ll.load_adapter(m, tmp_path),
        ):
            with pytest.raises(ModelError, match=r"FullyShardedDataParallel .*\(FSDP2\)"):
                call()


def test_deepspeeds_engine_comes_after_the_adapter(tmp_path):
    model = tiny("llama")
    with pytest.raises(ConfigError, match=r"attach to the model itself, then call deepspeed\."):
        ll.attach(DeepSpeedEngine(model), CONFIGS["LoRA"])
    stirred(ll.attach(model, CONFIGS["LoRA"]))
    engine = DeepSpeedEngine(model)
    assert list(ll.attached(engine)) == ["default"]
    ll.save_adapter(engine, tmp_path / "engine")
    ll.save_adapter(model, tmp_path / "model")
    found, expected = tensors_of(tmp_path / "engine"), tensors_of(tmp_path / "model")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


def test_a_model_that_is_compiled_twice_is_the_model(tmp_path):
    model, batch = tiny("gpt2"), tiny_inputs(tiny("gpt2"))
    twice = compiled(compiled(model))
    assert not isinstance(twice, nn.Module)  # torch makes a function of it
    stirred(ll.attach(twice, ll.LoraConfig(r=2)))
    ll.save_adapter(twice, tmp_path)
    ll.load_adapter(other := tiny("gpt2"), tmp_path)
    assert torch.equal(outputs(other, batch), outputs(model, batch))
    ll.detach(twice)
    assert torch.equal(outputs(model, batch), outputs(tiny("gpt2"), batch))


@pytest.mark.parametrize(
    "asks",
    [lambda m, to: ll.save_adapter(m, to), lambda m, _: ll.merge(m), lambda m, _: ll.analyze(m)],
)
def test_a_wrapper_of_ones_own_is_told_which_part_has_the_adapter(asks, tmp_path):
    model = nn.Sequential(nn.Dropout(), tiny("llama"))
    ll.attach(model[1], ll.LoraConfig(r=2))
    with pytest.raises(AdapterError, match="no adapter, but its part '1' has; pass that one"):
        asks(model, tmp_path)
