"""The merged model on disk: transformers' own files of `ll.merge`'s model, without a second one."""

import copy
import json
import math

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import lora_lab as ll
from lora_lab.budget.meter import LiveStorages
from lora_lab.errors import AdapterError
from tests.helpers.lora_outputs import everything, outputs
from tests.helpers.quantized_layers import Linear4bit
from tests.helpers.tiny_models import ARCHITECTURES, tiny, tiny_inputs
from tests.helpers.tiny_text import tiny_llama, tiny_tokenizer


def mixtral() -> nn.Module:
    """Its experts are one tensor in memory and many on disk."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 96}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4}
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes, **heads)).eval()


def build(name: str) -> nn.Module:
    return mixtral() if name == "mixtral" else tiny(name)


def all_tensors(folder) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        own = load_file(file)
        assert not own.keys() & found.keys()
        found |= own
    return found


@pytest.mark.parametrize("name", [*ARCHITECTURES, "mixtral"])
def test_the_files_are_those_of_save_pretrained_after_a_merge(name, tmp_path):
    model = build(name)
    ll.attach(model, everything())
    twin = copy.deepcopy(model)
    ll.merge(twin)
    twin.save_pretrained(tmp_path / "theirs")
    folder = ll.export_merged(model, tmp_path / "ours", max_shard_bytes=20_000)
    ours, theirs = all_tensors(folder), load_file(tmp_path / "theirs" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert tensor.dtype == ours[key].dtype, key
        assert torch.equal(ours[key], tensor), key
    for file in ("config.json", "generation_config.json"):
        texts = [p.read_text() for p in tmp_path.glob(f"*/{file}")]
        assert len(texts) in (0, 2)
        assert len({json.dumps(json.loads(text), sort_keys=True) for text in texts}) <= 1


@pytest.mark.parametrize("name", ["llama", "smollm", "gpt2", "gpt-neox", "t5", "vit", "mixtral"])
def test_from_pretrained_gives_the_merged_models_outputs(name, tmp_path):
    model = build(name)
    batch = tiny_inputs(model)
    ll.attach(model, everything())
    folder = ll.export_merged(model, tmp_path / "out", max_shard_bytes=20_000)
    loaded = type(model).from_pretrained(folder)
    ll.merge(model)
    torch.testing.assert_close(outputs(loaded, batch), outputs(model, batch), rtol=1e-6, atol=1e-6)
    assert not hasattr(loaded, "_lora_lab")


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("own", [torch.float32, torch.bfloat16])
def test_the_sum_is_rounded_once(own, dtype, tmp_path):
    model = tiny("llama").to(own)
    adapter = ll.attach(model, everything())
    written = all_tensors(ll.export_merged(model, tmp_path / "out", dtype=dtype))
    kind = dtype or own
    # Half a unit in the last place, and what float32 leaves of W₀ + ΔW before that.
    half_ulp = torch.finfo(kind).eps / 2
    for path, site in adapter.sites.items():
        W = adapter.base_weight(path).double().numpy()
        B, A = site.B.detach().double().numpy(), site.A.detach().double().numpy()
        exact = W + site.scale * B @ A
        found = written[f"{path}.weight"]
        assert found.dtype == kind
        slack = 4e-7 * (np.abs(W) + site.scale * np.abs(B) @ np.abs(A))
        error = np.abs(found.double().numpy() - exact)
        assert (error <= half_ulp * 2 ** np.ceil(np.log2(np.abs(exact))) + slack).all()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == str(kind).removeprefix("torch.")
    assert {tensor.dtype for tensor in written.values()} == {kind}


def test_the_model_stays_as_it_is(tmp_path):
    model = tiny("gpt2")
    ll.attach(model, everything(), "one")
    ll.attach(model, everything(target_modules=["q"]), "two")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    config, random = model.config.to_dict(), torch.get_rng_state()
    learning = [p.requires_grad for p in model.parameters()]
    ll.export_merged(model, tmp_path / "out", "one", dtype=torch.bfloat16)
    assert ll.active(model) == "two"
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.config.to_dict() == config
    assert torch.equal(torch.get_rng_state(), random)
    assert [p.requires_grad for p in model.parameters()] == learning


@pytest.mark.parametrize("keep_original", [True, False])
def test_a_merged_adapter_is_not_added_twice(keep_original, tmp_path):
    model = tiny("llama")
    ll.attach(model, everything())
    first = all_tensors(ll.export_merged(model, tmp_path / "first"))
    ll.merge(model, keep_original=keep_original)
    second = all_tensors(ll.export_merged(model, tmp_path / "second"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("targets", [["embed_tokens"], ["embed_tokens", "q"]])
def test_a_tied_embedding_is_written_once_with_its_update(targets, tmp_path):
    model = tiny("smollm")
    batch = tiny_inputs(model)
    ll.attach(model, everything(target_modules=targets))
    folder = ll.export_merged(model, tmp_path / "out")
    assert "lm_head.weight" not in all_tensors(folder)
    loaded = type(model).from_pretrained(folder)
    torch.testing.assert_close(outputs(loaded, batch), outputs(model, batch), rtol=1e-4, atol=1e-4)
    ll.merge(model)
    torch.testing.assert_close(outputs(loaded, batch), outputs(model, batch), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("bert", ["classifier"]),
        ("llama", ["lm_head", "model.layers.0.mlp"]),
        ("llama", ["embed_tokens", "norm"]),
        ("mixtral", ["model.layers.1.mlp.experts", "gate"]),
    ],
)
def test_modules_that_are_trained_whole_are_written_as_learnt(name, whole, tmp_path):
    model = build(name)
    adapter = ll.attach(model, everything(target_modules=["q", "v"], modules_to_save=whole))
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn_like(parameter))
    ours = all_tensors(ll.export_merged(model, tmp_path / "ours", max_shard_bytes=20_000))
    ll.merge(model)
    model.save_pretrained(tmp_path / "theirs")
    theirs = load_file(tmp_path / "theirs" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], tensor) for key, tensor in theirs.items())


def test_a_model_that_is_not_saved_layer_by_layer_is_refused(tmp_path, monkeypatch):
    def joined(_, state):  # all norms in one tensor, as no group of names alone can tell
        norms = [key for key in state if key.endswith("norm.weight")]
        rest = {key: tensor for key, tensor in state.items() if key not in norms}
        return {**rest, "norms": torch.cat([state[key] for key in norms])} if norms else rest

    model = tiny("llama")
    ll.attach(model, everything())
    monkeypatch.setattr("transformers.core_model_loading.revert_weight_conversion", joined)
    with pytest.raises(AdapterError, match=r"not saved layer by layer; call merge\(model\), then"):
        ll.export_merged(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_dora_is_merged_too(tmp_path):
    model = tiny("llama")
    batch = tiny_inputs(model)
    ll.attach(model, everything(use_dora=True))
    loaded = type(model).from_pretrained(ll.export_merged(model, tmp_path / "out"))
    ll.merge(model)
    torch.testing.assert_close(outputs(loaded, batch), outputs(model, batch), rtol=1e-6, atol=1e-6)


def test_files_are_no_larger_than_asked_and_the_index_is_complete(tmp_path):
    model = tiny("llama")
    ll.attach(model, everything())
    folder = ll.export_merged(model, tmp_path / "out", max_shard_bytes=15_000)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 3
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    total = 0
    for file in files:
        with safe_open(file, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
            keys = opened.keys()
            sizes = [opened.get_tensor(key).nbytes for key in keys]
            assert {index["weight_map"][key] for key in keys} == {file.name}
        assert sum(sizes) <= 15_000 or len(sizes) == 1
        total += sum(sizes)
    assert index["metadata"]["total_size"] == total
    alone = ll.export_merged(model, tmp_path / "alone")
    assert (alone / "model.safetensors").is_file()
    assert not (alone / "model.safetensors.index.json").exists()


def test_mixed_types_are_read_back_aligned(tmp_path):
    model = tiny("llama").to(torch.bfloat16)
    model.model.norm.float()  # one vector of another type between the others
    model.register_buffer("flags", torch.tensor([True, False, True]))
    ll.attach(model, everything())
    written = all_tensors(ll.export_merged(model, tmp_path / "out"))
    assert torch.equal(written["model.norm.weight"], model.model.norm.weight)
    assert torch.equal(written["flags"], model.flags)
    assert torch.equal(written["lm_head.weight"], model.lm_head.weight)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_never_more_than_a_layer_is_held_besides_the_model(dtype, tmp_path):
    # Two layers' worth: the merged layer, and the float32 sum of the matrix that comes next.
    model = tiny("llama", num_hidden_layers=12)
    ll.attach(model, everything())
    layer = sum(p.nbytes for k, p in model.model.layers[0].named_parameters() if "lora" not in k)
    own = [*model.parameters(), *model.buffers()]
    with LiveStorages(own) as live:
        held = live.live
        ll.export_merged(model, tmp_path / "out", dtype=dtype)
    assert 0 < live.peak - held <= 2 * layer
    assert math.isclose(live.live, held, abs_tol=layer / 10)


def test_a_tokenizer_is_written_beside_it(tmp_path):
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    ll.attach(model, everything())
    folder = ll.export_merged(model, tmp_path / "out", tokenizer=tokenizer)
    read = transformers.AutoTokenizer.from_pretrained(folder)
    assert read("one two")["input_ids"] == tokenizer("one two")["input_ids"]
    lm = ll.load_model(str(folder))
    assert lm.tokenizer is not None


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(8, 8)


def test_what_cannot_be_written_ends_in_one_line(tmp_path, monkeypatch):
    def message(model, *arguments, **options):
        with pytest.raises(AdapterError) as caught:
            ll.export_merged(model, tmp_path / "out", *arguments, **options)
        assert "\n" not in str(caught.value)
        assert list(tmp_path.iterdir()) == []
        return str(caught.value)

    assert "has no adapter; call attach" in message(tiny("llama"))
    net = Net()
    ll.attach(net, everything(target_modules=["q_proj"]))
    assert "is no transformers model" in message(net)
    model = tiny("llama")
    ll.attach(model, everything(), "one")
    ll.attach(model, everything(), "two")
    assert "no adapter is called 'three'; attached are 'one', 'two'" in message(model, "three")
    assert "dtype is torch.int8; use torch.float32" in message(model, dtype=torch.int8)
    assert "max_shard_bytes is 0" in message(model, max_shard_bytes=0)
    ll.activate(model, None)
    assert "no adapter is active; name one of 'one', 'two'" in message(model)
    ll.merge(model, "one")
    assert "'one' is merged; call unmerge(model) first" in message(model, "two")
    ll.unmerge(model)
    model.hf_quantizer = object()
    assert "is quantized; load it unquantized" in message(model, "one")
    del model.hf_quantizer
    model.lm_head = Linear4bit(model.lm_head)
    assert "is quantized; load it unquantized" in message(model, "one")
    model.lm_head = nn.Linear(32, 96, bias=False)

    def full(self, key, tensor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lora_lab.checkpoint.shards.ShardWriter.write", full)
    assert "No space left on device; free some space" in message(model, "one")
