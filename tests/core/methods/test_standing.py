"""What stands no more where an adapter acts is told by name: a pass, a step, a file, a merge."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

import lora_lab as ll
from lora_lab._util.torch_private import hooks_of
from lora_lab.errors import AdapterError
from lora_lab.methods import standing
from tests.helpers.tiny_models import tiny, tiny_inputs

LORA = ll.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
HEAD = LORA.replace(target_modules=["query"], modules_to_save=["classifier"])
WORDS = LORA.replace(target_modules=["wte"])
TOKENS = ll.PrefixEmbedConfig(2, 1)
METHODS = {
    "LoRA": LORA,
    "IA3": ll.IA3Config(target_modules=["q_proj"], feedforward_modules=[]),
    "OFT": ll.OFTConfig(oft_block_size=4, target_modules=["q_proj"]),
    "AdaLoRA": ll.AdaLoraConfig(target_r=2, init_r=3, target_modules=["q_proj"]),
    "FT": ll.FullConfig(),
    "BitFit": ll.BitFitConfig(new_biases=True),
    "Adapter^H": ll.BottleneckConfig("H", r=2),
    "PreLayer": ll.PrefixLayerConfig(2, 1),
    "LoRA+PE": [LORA, TOKENS],
}


def new(layer):
    return nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)


def new_matrix(model):
    attention = model.model.layers[0].self_attn
    attention.q_proj = new(attention.q_proj)


def new_block(model):
    model.model.layers[1] = copy.deepcopy(tiny("llama", seed=1).model.layers[1])


def fewer_blocks(model):
    body = model.base_model
    name = "h" if hasattr(body, "h") else "layers"
    setattr(body, name, getattr(body, name)[:1])


def new_words(model):
    model.set_input_embeddings(nn.Embedding(*model.get_input_embeddings().weight.shape))


def new_output(model):
    model.lm_head = new(model.lm_head)


def new_head(model):
    model.classifier = new(model.classifier)


def no_head(model):
    model.classifier = nn.Identity()


def new_within(model):
    model.classifier.out_proj = new(model.classifier.out_proj)


def new_stack(model):
    model.bert.encoder = copy.deepcopy(tiny("bert", seed=1).bert.encoder)


CASES = [
    *(("llama", config, new_block, r"^model\.layers\.1") for config in METHODS.values()),
    ("llama", LORA, new_matrix, r"^model\.layers\.0\.self_attn\.q_proj was"),
    ("llama", LORA, fewer_blocks, r"^model\.layers\.1\.self_attn\.q_proj was"),
    ("llama", LORA.replace(target_modules=["embed_tokens"]), new_words, r"^model\.embed_tokens w"),
    ("llama", LORA.replace(trainable_token_indices=[1]), new_words, r"^model\.embed_tokens was"),
    ("gpt2", WORDS, new_words, r"^transformer\.wte was"),
    ("gpt2", WORDS, new_output, r"^lm_head was"),  # the other end of the tied weight
    ("gpt2", ll.BitFitConfig(), fewer_blocks, r"^transformer\.h\.1\..* \(and \d+ more\) was"),
    ("bert", HEAD, new_head, r"^classifier was"),
    ("bert", ll.HeadConfig(), no_head, r"^classifier was"),
    ("roberta", HEAD, new_within, r"^classifier\.out_proj was"),  # of which the copy has its own
    ("bert", TOKENS, new_stack, r"^bert\.encoder was"),  # a hook takes the tokens out again there
]


@pytest.mark.parametrize(("name", "config", "change", "line"), CASES)
def test_what_was_replaced_is_named_by_a_pass_a_file_and_a_merge(
    name, config, change, line, tmp_path
):
    model = tiny(name)
    inputs = tiny_inputs(model)
    ll.attach(model, config)
    quiet(lambda: model(**inputs))
    change(model)
    with pytest.warns(UserWarning, match=line) as caught:
        model(**inputs)
    assert len(caught) == 1
    quiet(lambda: model(**inputs))  # it is said once
    with pytest.warns(UserWarning, match=line):
        ll.save_adapter(model, tmp_path / "adapter")
    for refused in (ll.merge, lambda own: ll.export_merged(own, tmp_path / "merged")):
        with pytest.raises(AdapterError, match=line):
            refused(model)


@pytest.mark.parametrize(("name", "config", "change", "_line"), CASES)
def test_the_bare_base_misses_nothing_and_no_hook_is_left(name, config, change, _line):
    model = tiny(name)
    inputs = tiny_inputs(model)
    ll.attach(model, config)
    change(model)
    if config in (ll.FullConfig(), ll.BitFitConfig()):  # where would W₀ go?
        with pytest.raises(AdapterError, match="its module was replaced or the model offloaded"):
            ll.detach(model)
        return
    ll.activate(model, None)
    quiet(lambda: model(**inputs))
    ll.detach(model)
    assert not [hook for part in model.modules() for hook in hooks_of(part)]


def quiet(run):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return run()


class Around(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, *args, **options):
        return self.layer(*args, **options)


def around_it(model):
    model.lm_head = Around(model.lm_head)


def blocks_exchanged(model):
    blocks = model.model.layers
    blocks[0], blocks[1] = blocks[1], blocks[0]
    model.model.layers = nn.ModuleList(blocks)


def put_back(model):
    before, model.model.layers[0] = model.model.layers[0], nn.Identity()
    model.model.layers[0] = before


def cast(model):
    model.to(torch.float64)


@pytest.mark.parametrize("change", [around_it, blocks_exchanged, put_back, cast])
def test_what_the_model_still_has_is_not_missed(change):
    model = tiny("llama")
    inputs = tiny_inputs(model)
    ll.attach(model, LORA.replace(target_modules=["q_proj", "up_proj", "lm_head"]))
    change(model)
    quiet(lambda: model(**inputs))
    ll.merge(model)
    ll.unmerge(model)
    quiet(lambda: model(**inputs))


def test_a_parameter_for_a_moment_is_another_matter_than_one_for_good():
    model = tiny("gpt2")
    inputs = tiny_inputs(model)
    ll.attach(model, ll.BitFitConfig())
    own = {name: p.detach().clone() for name, p in model.named_parameters()}
    quiet(lambda: torch.func.functional_call(model, own, kwargs=inputs))
    ln = model.transformer.ln_f
    ln.bias = nn.Parameter(ln.bias.detach().clone())
    with pytest.raises(AdapterError, match=r"^transformer\.ln_f\.bias was replaced or taken out"):
        ll.merge(model)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda own: pickle.loads(pickle.dumps(own))])
def test_a_copy_misses_its_own(copied):
    model = tiny("llama")
    inputs = tiny_inputs(model)
    ll.attach(model, LORA)
    model(**inputs)
    twin = copied(model)
    new_matrix(model)
    quiet(lambda: twin(**inputs))
    new_block(twin)
    with pytest.warns(UserWarning, match=r"^model\.layers\.1\.self_attn\.q_proj was replaced"):
        twin(**inputs)


def test_a_pass_looks_at_nothing_but_where_the_adapter_in_force_acts(monkeypatch):
    model = tiny("llama")
    for number in range(3):
        ll.attach(model, LORA, f"a{number}")
    walks, looks = [], []
    monkeypatch.setattr(standing, "_places", lambda *_: walks.append(1) or [])
    monkeypatch.setattr(standing, "children_of", lambda own: looks.append(own) or own._modules)
    model(**tiny_inputs(model))
    # model, layers, and of both blocks self_attn and q_proj, each from what holds it
    assert (len(walks), len(looks)) == (0, 8)


@pytest.mark.parametrize("config", [TOKENS, ll.PrefixLayerConfig(2, 1)])
def test_learned_tokens_stand_among_the_words_that_the_model_has_now(config):
    model, other = tiny("llama"), tiny("llama")
    words = tiny("llama", seed=1).get_input_embeddings()
    other.set_input_embeddings(words)
    inputs = tiny_inputs(model)
    ll.attach(model, config)
    ll.attach(other, config)
    for own, theirs in zip(
        ll.attached(model)["default"].parameters(),
        ll.attached(other)["default"].parameters(),
        strict=True,
    ):
        theirs.data.copy_(own.data)
    model.set_input_embeddings(words)
    torch.testing.assert_close(model(**inputs).logits, other(**inputs).logits, rtol=0, atol=0)
