"""State that training changes without a gradient: BatchNorm's averages and the like."""

import copy
import warnings

import pytest
import torch
import transformers
from torch import nn

import lora_lab as ll
from lora_lab.checkpoint.factors import read_factors
from lora_lab.checkpoint.loralib_models import save_loralib
from lora_lab.errors import AdapterError
from lora_lab.methods.attached import bare as bare_base
from lora_lab.methods.attached import require_adapters
from lora_lab.training.last_good import LastGood

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).double() * 2 + 1


class Averages(nn.Module):
    """A codebook's kind of layer: one buffer is a new tensor every time, one changes in place."""

    def __init__(self):
        super().__init__()
        self.register_buffer("average", torch.zeros(4))
        self.register_buffer("count", torch.tensor(0))

    def forward(self, x):
        if self.training:
            self.average = self.average * 0.9 + 0.1 * x.detach().mean(0)
            self.count += 1
        return x - self.average


class Instances(nn.InstanceNorm1d):
    def forward(self, x):
        return super().forward(x[..., None] * torch.tensor([1.0, 2, 3]).to(x))[..., 1]


LAYERS = {
    "BatchNorm": lambda: nn.BatchNorm1d(4),
    "BatchNorm without parameters": lambda: nn.BatchNorm1d(4, affine=False),
    "BatchNorm of all passes": lambda: nn.BatchNorm1d(4, momentum=None),
    "InstanceNorm": lambda: Instances(4, track_running_stats=True),
    "averages": Averages,
    "spectral_norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)),
    "old spectral_norm": lambda: nn.utils.spectral_norm(nn.Linear(4, 4)),
}
LORA = ll.LoraConfig(r=2, target_modules=["0"])
METHODS = {
    "LoRA": LORA,
    "modules_to_save": LORA.replace(modules_to_save=["1"]),
    "IA3": ll.IA3Config(target_modules=["0"]),
    "FT": ll.FullConfig(),
    "BitFit": ll.BitFitConfig(),
    "combined": [LORA, ll.HeadConfig(modules=["2"])],
}


def net(layer="BatchNorm"):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), LAYERS[layer](), nn.Linear(4, 4)).double()


def train(model, adapter, steps=5, shift=0.0):
    model.train()
    optimizer = torch.optim.SGD([p for p in adapter.parameters() if p.requires_grad], 1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        model(X + shift).pow(2).sum().backward()
        optimizer.step()
    model.eval()


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def copied(model):
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layer", LAYERS)
def test_an_adapter_has_its_own_and_the_base_keeps_what_it_had(layer, method, tmp_path):
    model, other = net(layer), net(layer)
    before = copied(model)
    bare = other.eval()(X)
    adapter = ll.attach(model, METHODS[method])
    train(model, adapter)
    y = model(X)
    assert not torch.allclose(y, bare)
    ll.save_adapter(model, tmp_path)
    ll.load_adapter(other, tmp_path)
    assert torch.equal(other(X), y)
    ll.activate(model, None)
    assert torch.equal(model(X), bare)
    ll.activate(model, "default")
    assert torch.equal(model(X), y)
    ll.merge(model)
    close(model(X), y)
    ll.unmerge(model)
    assert torch.equal(model(X), y)
    for done in (model, other):
        ll.detach(done)
        after = done.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())


def test_every_adapter_has_its_own():
    model = net()
    before, bare = copied(model), net().eval()(X)
    one = ll.attach(model, LORA, "one")
    train(model, one)
    first = model(X)
    two = ll.attach(model, LORA, "two")
    train(model, two, shift=3.0)
    second = model(X)
    ll.activate(model, "one")
    assert torch.equal(model(X), first)
    with bare_base(model):
        assert torch.equal(model(X), bare)
    ll.merge(model, "two")
    close(model(X), second)
    ll.merge(model, "one")
    close(model(X), first)
    ll.unmerge(model)
    ll.detach(model, "one")
    assert torch.equal(model(X), bare)
    ll.activate(model, "two")
    assert torch.equal(model(X), second)
    with pytest.warns(UserWarning, match="is replaced"):
        ll.attach(model, LORA, "two")
    assert torch.equal(model(X), bare), "a new adapter starts as the base"
    ll.detach(model)
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in before.items())


def test_attaching_changes_none_even_where_the_model_is_read_or_run():
    # A spectral norm's vectors move whenever its weight is looked at in training mode.
    model = net("spectral_norm").train()
    before = copied(model)
    ll.attach(model, ll.LoraConfig(r=2, target_modules=["1"]))
    ll.detach(model)
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in before.items())


def test_a_copy_of_the_model_has_its_own():
    model = net()
    adapter = ll.attach(model, LORA)
    train(model, adapter)
    y, twin = model(X), copy.deepcopy(model)
    train(twin, ll.attached(twin)["default"], shift=5.0)
    ll.activate(twin, None)
    assert torch.equal(twin(X), net().eval()(X))
    assert torch.equal(model(X), y)


def test_one_batch_cannot_have_two():
    model = net()
    train(model, ll.attach(model, LORA, "one"))
    ll.attach(model, LORA, "two")
    line = "'one' has running statistics of its own"
    with pytest.raises(AdapterError, match=line), ll.mixed_batch(model, ["one", "two"]):
        pass


def test_what_holds_only_factors_refuses_them(tmp_path):
    model = net()
    train(model, ll.attach(model, LORA))
    for write in (ll.export_uniform, save_loralib):
        with pytest.raises(AdapterError, match="has running statistics of its own, which"):
            write(model, tmp_path / "out.safetensors")
    assert not any(tmp_path.iterdir())


def test_statistics_that_are_no_numbers_are_refused(tmp_path):
    model = net()
    train(model, ll.attach(model, LORA))
    model[1].running_var[0] = torch.inf
    with pytest.raises(AdapterError, match=r"holds 1 NaN or infinite values at 1\.running_var"):
        ll.save_adapter(model, tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_a_file_for_a_base_without_them_names_the_first(tmp_path):
    model = net()
    for name, config in {"lora": LORA, "bitfit": ll.BitFitConfig()}.items():
        train(model, ll.attach(model, config, name))
        ll.save_adapter(model, tmp_path / name, name)
        other = nn.Sequential(nn.Linear(4, 4), nn.Identity(), nn.Linear(4, 4))
        with pytest.raises(AdapterError, match=r"1\.(running_mean|num_batches_tracked|bias)"):
            ll.load_adapter(other, tmp_path / name)
        assert not ll.attached(other)


def test_the_last_good_adapter_has_those_that_it_had():
    model = net()
    adapter = ll.attach(model, LORA)
    good = LastGood(model, adapter)
    train(model, adapter)
    good.keep(5)
    good.confirm()
    y = model(X)
    train(model, adapter, shift=100.0)
    model[1].running_mean.fill_(torch.nan)
    assert good.restore() == 5
    assert torch.equal(model(X), y)
    ll.detach(model)
    assert torch.equal(model(X), net().eval()(X))


def test_packed_weights_are_none():
    model = net()
    model[2].register_buffer("qweight", torch.zeros(4, 2, dtype=torch.int32))
    model[2].register_buffer("scales", torch.zeros(4))
    ll.attach(model, LORA)
    statistics = require_adapters(model).statistics
    assert "1.running_mean" in statistics
    assert "2.scales" not in statistics
    assert "2.qweight" not in statistics


def resnet():
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3
    )
    return transformers.ResNetForImageClassification(config)


@pytest.fixture(scope="module")
def trained():
    """A ResNet with a trained adapter, the images, and what it answers."""
    torch.manual_seed(1)
    model, images = resnet(), torch.randn(8, 3, 32, 32) * 2 + 1
    config = ll.LoraConfig(r=2, target_modules=["convolution"], modules_to_save=["classifier"])
    adapter = ll.attach(model, config)
    optimizer = torch.optim.SGD(adapter.parameters(), 1e-2)
    model.train()
    for _ in range(5):
        optimizer.zero_grad()
        model(pixel_values=images, labels=torch.zeros(8, dtype=torch.long)).loss.backward()
        optimizer.step()
    return model, images, model.eval()(pixel_values=images).logits.detach()


def test_peft_reads_them_from_the_file(trained, tmp_path):
    from peft import PeftModel

    model, images, y = trained
    ll.save_adapter(model, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        theirs = PeftModel.from_pretrained(resnet(), tmp_path).eval()
    torch.testing.assert_close(theirs(pixel_values=images).logits, y, rtol=1e-4, atol=1e-5)
    with pytest.raises(AdapterError, match="running statistics of the base's own layers"):
        read_factors(tmp_path)


@pytest.mark.parametrize("active", ["default", None])
def test_a_whole_model_is_exported_with_the_adapters_own(trained, active, tmp_path):
    model, images, y = trained
    ll.activate(model, active)
    ll.export_merged(model, tmp_path / "out", "default")
    again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(again(pixel_values=images).logits, y, rtol=1e-4, atol=1e-5)
