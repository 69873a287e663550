"""Several methods at once: one name, one switch, each part in a folder of its own."""

import copy

import pytest
import torch

import lora_lab as ll
from lora_lab.errors import AdapterError, ConfigError
from lora_lab.methods.combination import Combination
from tests.helpers.lora_outputs import outputs
from tests.helpers.tiny_models import tiny, tiny_inputs

LORA = ll.LoraConfig(r=2, target_modules=["q", "v"], init_lora_weights=False)
BOTH = [LORA, ll.PrefixEmbedConfig(prefix_length=3, infix_length=2)]


def test_a_list_of_one_is_that_method_itself():
    adapter = ll.attach(tiny("llama"), [LORA])
    assert adapter.method == "LoRA"
    assert adapter.config == LORA


def test_it_counts_and_names_its_parts_as_the_paper_does():
    model = tiny("llama")
    adapter = ll.attach(model, BOTH)
    assert isinstance(adapter, Combination)
    assert adapter.method == "LoRA+PE"
    d = model.config.hidden_size
    each = [part.trainable for part in adapter.adapters]
    assert each[1] == 5 * d
    assert adapter.trainable == sum(each)
    assert adapter.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert ll.budget(model, BOTH, sequence_length=8).parameters_trainable == adapter.trainable


def test_every_part_gets_a_gradient_and_is_switched_with_the_others():
    model = tiny("llama").double()
    batch = tiny_inputs(model)
    before = outputs(model, batch)
    adapter = ll.attach(model, BOTH)
    model(**batch).logits.square().sum().backward()
    for place, learnt in adapter.parameters_by_location().items():
        assert any(p.grad is not None and p.grad.any() for p in learnt), place
    assert not torch.equal(outputs(model, batch), before)
    ll.activate(model, None)
    assert torch.equal(outputs(model, batch), before)
    ll.detach(model)
    assert torch.equal(outputs(model, batch), before)


def test_each_part_is_saved_in_its_own_folder_and_comes_back(tmp_path):
    model = tiny("llama").double()
    batch = tiny_inputs(model)
    bare = copy.deepcopy(model)
    ll.attach(model, BOTH)
    folder = ll.save_adapter(model, tmp_path / "both")
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == ["1-lora", "2-pre-embed"]
    loaded = ll.load_adapter(bare, folder, "again")
    assert loaded.method == "LoRA+PE"
    torch.testing.assert_close(outputs(bare, batch), outputs(model, batch), rtol=1e-9, atol=1e-9)
    # A part is an adapter by itself, and LoRA's is PEFT's.
    from peft import PeftModel

    alone, theirs = tiny("llama").double(), tiny("llama").double()
    ll.load_adapter(alone, folder / "1-lora")
    theirs = PeftModel.from_pretrained(theirs, folder / "1-lora")
    torch.testing.assert_close(outputs(theirs, batch), outputs(alone, batch), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("configs", "line"),
    [
        ([], "the list of configs is empty"),
        ([LORA, BOTH], "holds a list; put all configs into one"),
        ("lora", "str is no method's config"),
        ([LORA, ll.LoraConfig(r=4, target_modules=["v"])], r"LoRA and LoRA both claim .*\.v_proj"),
        ([LORA, ll.FullConfig()], r"LoRA and FT both claim .*\.q_proj"),
        ([ll.FullConfig(top_layers=1), ll.FullConfig()], "FT-Top1 and FT both claim"),
        ([ll.PrefixEmbedConfig(), ll.PrefixLayerConfig()], "both claim the learned tokens"),
        ([ll.BottleneckConfig("H"), ll.BottleneckConfig("P")], "both claim the place after"),
        ([LORA, ll.TrainingConfig()], "TrainingConfig is no method's config"),
    ],
    ids=lambda value: "" if isinstance(value, list) else value[:20],
)
def test_what_claims_the_same_weight_is_refused_and_nothing_has_changed(configs, line):
    model = tiny("llama")
    names = [name for name, _ in model.named_modules()]
    classes = [type(module) for module in model.modules()]
    required = [p.requires_grad for p in model.parameters()]
    with pytest.raises(ConfigError, match=line):
        ll.attach(model, configs)
    assert [name for name, _ in model.named_modules()] == names
    assert [type(module) for module in model.modules()] == classes
    assert [p.requires_grad for p in model.parameters()] == required
    assert not ll.attached(model)


def test_two_loras_on_slices_of_one_fused_matrix_are_sent_to_one_config():
    slices = [ll.LoraConfig(r=r, target_modules=[role]) for r, role in ((2, "q"), (4, "v"))]
    with pytest.raises(ConfigError, match="put its slices into one config, with rank_pattern"):
        ll.attach(tiny("gpt2"), slices)
    adapter = ll.attach(tiny("llama"), slices)  # two matrices of their own
    assert {site.r for site in adapter.sites.values()} == {2, 4}


def test_lora_and_bitfit_merge_as_one_and_come_apart_bit_for_bit():
    model = tiny("gpt2")
    batch = tiny_inputs(model)
    before = {name: p.clone() for name, p in model.named_parameters()}
    adapter = ll.attach(model, [LORA, ll.BitFitConfig()])
    with torch.no_grad():
        for learnt in adapter.parameters():
            learnt.add_(torch.randn_like(learnt) / 50)
    tuned = outputs(model, batch)
    ll.merge(model)
    torch.testing.assert_close(outputs(model, batch), tuned, rtol=1e-4, atol=1e-5)
    ll.unmerge(model)
    assert torch.equal(outputs(model, batch), tuned)
    ll.detach(model)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


@pytest.mark.parametrize("keep_original", [True, False])
def test_what_cannot_merge_is_refused_and_the_weights_are_as_they_were(keep_original):
    model = tiny("llama")
    batch = tiny_inputs(model)
    ll.attach(model, BOTH)
    before = {name: p.clone() for name, p in model.named_parameters()}
    tuned = outputs(model, batch)
    with pytest.raises(AdapterError, match="PreEmbed"):
        ll.merge(model, keep_original=keep_original)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert torch.equal(outputs(model, batch), tuned)


def test_a_refused_merge_leaves_another_one_merged(tmp_path):
    model = tiny("llama")
    batch = tiny_inputs(model)
    ll.attach(model, LORA, "lora")
    ll.attach(model, BOTH, "both")
    ll.merge(model, "lora", keep_original=False)
    merged = outputs(model, batch)
    with pytest.raises(AdapterError, match="PreEmbed cannot be merged"):
        ll.merge(model, "both")
    assert ll.active(model) == "lora"
    assert torch.equal(outputs(model, batch), merged)


def test_what_cannot_merge_is_not_begun_to_be_written(tmp_path, monkeypatch):
    model = tiny("llama")
    ll.attach(model, BOTH)
    monkeypatch.setattr(Combination, "merged_weights", lambda *_: pytest.fail("it was begun"))
    with pytest.raises(AdapterError, match="PreEmbed cannot be merged"):
        ll.export_merged(model, tmp_path / "merged")
    assert not list(tmp_path.iterdir())


def test_a_merge_that_breaks_off_without_w0_says_so(monkeypatch):
    model = tiny("llama")
    adapter = ll.attach(model, LORA)
    whole = adapter.merged_weights

    sound = []  # passes that get through: without W₀ all is looked at once before

    def broken(dtype=None):
        if sound:
            sound.pop()
            yield from whole(dtype)
            return
        yield next(whole(dtype))
        raise MemoryError

    monkeypatch.setattr(adapter, "merged_weights", broken)
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(MemoryError) as kept:
        ll.merge(model)
    assert not hasattr(kept.value, "__notes__")
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    with pytest.raises(MemoryError) as kept:
        ll.merge(model, keep_original=False)
    assert not hasattr(kept.value, "__notes__")
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    sound.append("the look before")
    with pytest.raises(MemoryError) as lost:
        ll.merge(model, keep_original=False)
    assert "load the model again" in lost.value.__notes__[0]


def test_a_folder_keeps_no_part_of_an_earlier_combination(tmp_path):
    model = tiny("llama")
    folder = tmp_path / "adapter"

    def found():
        return sorted(p.name for p in folder.iterdir() if p.is_dir())

    ll.attach(model, BOTH, "both")
    ll.attach(model, [LORA, ll.BottleneckConfig("P", r=2)], "other")
    ll.attach(model, BOTH[1], "own")
    ll.attach(model, LORA, "lora")
    for single in ("own", "lora"):
        ll.save_adapter(model, folder, "both")
        assert found() == ["1-lora", "2-pre-embed"]
        ll.save_adapter(model, folder, "other")
        assert found() == ["1-lora", "2-adapter-p"]
        notes = folder / "2-adapter-p" / "notes.txt"
        notes.write_text("a person's")
        ll.save_adapter(model, folder, single)
        assert found() == ["2-adapter-p"]  # what is not ours stays, and nothing else
        assert [p.name for p in notes.parent.iterdir()] == ["notes.txt"]
        notes.unlink()
        notes.parent.rmdir()


def test_samples_of_one_batch_cannot_have_it():
    model = tiny("llama")
    ll.attach(model, BOTH, "both")
    with (
        pytest.raises(AdapterError, match=r"'both' is LoRA\+PE, which answers whole batches only"),
        ll.mixed_batch(model, ["both", None]),
    ):
        pass
