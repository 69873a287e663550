"""Other libraries' private names, each once: what fails first after an upgrade of one of them."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ipykernel.comm.comm
import ipywidgets
import pytest
import torch
import transformers
from torch import nn
from torch.nn.utils.weight_norm import WeightNorm

from lora_lab._util import (
    accelerate_private,
    python_private,
    sacrebleu_private,
    torch_private,
    transformers_private,
)
from lora_lab_widgets import subshell
from tests.helpers.checkpointing import checkpoint
from tests.helpers.tiny_experts import logits, tiny_experts
from tests.helpers.tiny_models import tiny
from tests.helpers.versions import HAS_GROUPED

ROOT = Path(__file__).parents[3]
FENCES = {
    "lora_lab/_util/accelerate_private.py",
    "lora_lab/_util/python_private.py",
    "lora_lab/_util/sacrebleu_private.py",
    "lora_lab/_util/torch_private.py",
    "lora_lab/_util/transformers_private.py",
    "widgets/lora_lab_widgets/subshell.py",
}


def sources() -> dict[str, ast.AST]:
    paths = [*(ROOT / "lora_lab").rglob("*.py"), *(ROOT / "widgets").rglob("*.py")]
    return {p.relative_to(ROOT).as_posix(): ast.parse(p.read_text("utf-8")) for p in paths}


def own_names(tree: ast.AST) -> Iterator[str]:
    """Yield the names that a module defines: functions, classes, attributes, variables."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if ast.unparse(node.value) == "self":  # what is set on another may be that one's
                yield node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


# Documented methods of named tuples, whose names only begin so that no field is called like them.
PUBLIC = {"_asdict", "_replace", "_fields"}


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in PUBLIC


def private_names(tree: ast.AST, own: set[str]) -> Iterator[str]:
    """Yield the private names of others that a module uses."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr) and node.attr not in own:
            yield node.attr
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("lora_lab"):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            yield from filter(private, names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
            given = node.args[1]
            if isinstance(given, ast.Constant) and private(given.value) and given.value not in own:
                yield given.value


def test_private_names_of_others_stand_behind_the_fences_only() -> None:
    trees = sources()
    own = {name for path, tree in trees.items() if path not in FENCES for name in own_names(tree)}
    outside = {
        f"{path}: {name}"
        for path, tree in trees.items()
        if path not in FENCES
        for name in private_names(tree, own)
    }
    assert not outside


def test_the_search_finds_them() -> None:
    tree = ast.parse(
        "from torch._x import y\nfrom torch import _z\nself._mine = a._theirs\n"
        "getattr(a, '_hidden', None)\nhasattr(a, '_mine')\na.__dict__\nother._mine\na._set = 1"
    )
    found = set(private_names(tree, set(own_names(tree))))
    assert found == {"_x", "_z", "_theirs", "_hidden", "_set"}


def test_every_function_behind_a_fence_is_tested_here_or_in_a_file_of_its_own() -> None:
    files = [Path(__file__), *Path(__file__).parent.glob("test_*_private.py")]
    here = "".join(path.read_text("utf-8") for path in files)
    fences = accelerate_private, python_private, sacrebleu_private
    for fence in (*fences, torch_private, transformers_private):
        for name, value in vars(fence).items():
            if inspect.isfunction(value) and value.__module__ == fence.__name__:
                assert f"{fence.__name__.rpartition('.')[2]}.{name}(" in here, name


# --- torch ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cudnn", "flash", "efficient", "math"])
def test_attention_kernels_take_what_the_forecast_gives_them(name: str) -> None:
    masked = {"cudnn": (None, True), "efficient": (None, True), "math": (None,)}.get(name, ())
    last = {"efficient": (), "math": (None,)}.get(name, (False,))
    with torch_private.FakeTensorMode():
        q, k, v = torch.ones(3, 2, 4, 8, 16, requires_grad=True)
        kernel = torch_private.attention_kernel(name)
        out = kernel(q, k, v, *masked, 0.0, True, *last, scale=0.5)[0]
        assert out.shape == q.shape
        assert "Attention" in out.grad_fn.name() or name == "math"


def test_a_row_that_is_masked_as_a_whole_has_no_probabilities() -> None:
    scores = torch.tensor([[1.0, 1.0], [float("-inf")] * 2])
    assert torch_private.safe_softmax(scores).tolist() == [[0.5, 0.5], [0.0, 0.0]]


@pytest.mark.skipif(torch.__version__ < (2, 8), reason="nobody can tell there")
def test_saving_hooks_are_those_of_the_innermost_block() -> None:
    assert torch_private.saving_hooks() is None
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        assert torch_private.saving_hooks() is not None


def test_functorch_is_active_inside_its_transforms() -> None:
    seen = []

    def f(x: torch.Tensor) -> torch.Tensor:
        seen.append(torch_private.functorch_is_active())
        return x

    torch.func.vmap(f)(torch.ones(2))
    assert [*seen, torch_private.functorch_is_active()] == [True, False]


def test_a_storage_has_one_key_and_two_have_two() -> None:
    x, y = torch.ones(4), torch.ones(4)
    keys = [torch_private.storage_key(t.untyped_storage()) for t in (x, x[1:], y)]
    assert keys[0] == keys[1] != keys[2]


def test_a_modules_own_dictionaries_are_read_and_written() -> None:
    module = nn.BatchNorm1d(2)
    module.register_buffer("unsaved", torch.ones(1), persistent=False)
    torch_private.children_of(module)["keys"] = child = nn.Linear(1, 1)
    assert dict(module.named_children()) == {"keys": child}
    assert torch_private.parameters_of(module).keys() == {"weight", "bias"}
    assert torch_private.buffers_of(module)["unsaved"] is module.unsaved
    saved = torch_private.saved_buffers_of(module)
    assert saved.keys() == module.state_dict().keys() - {"weight", "bias"} - {
        f"keys.{name}" for name in child.state_dict()
    }


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
def test_the_older_weight_norm_is_a_pre_hook() -> None:
    layer = nn.Linear(2, 2)
    assert not torch_private.pre_hooks_of(layer)
    hook = WeightNorm.apply(layer, "weight", 0)
    assert list(torch_private.pre_hooks_of(layer).values()) == [hook]


def test_a_module_with_another_parameter_leaves_the_first_as_it_is() -> None:
    layer, x = nn.Linear(2, 3), torch.randn(1, 2)
    before = layer(x)
    twin = torch_private.with_parameter(layer, "weight", torch.zeros(3, 2))
    assert torch.equal(twin(x)[0], layer.bias)
    assert torch.equal(layer(x), before)


@pytest.mark.parametrize("padding", ["zeros", "circular"])
def test_a_convolution_with_another_weight(padding: str) -> None:
    conv, other = (nn.Conv1d(2, 3, 3, padding=1, padding_mode=padding) for _ in range(2))
    x = torch.randn(1, 2, 5)
    expected = other(x) - other.bias[:, None]
    torch.testing.assert_close(torch_private.convolve(conv, x, other.weight), expected)


def test_operations_on_lists_are_those_on_each() -> None:
    xs, ys = ([torch.randn(3), torch.randn(2, 2)] for _ in range(2))
    expected = [(x * y).abs() for x, y in zip(xs, ys, strict=True)]
    found = torch_private.products(xs, ys)
    torch.testing.assert_close(found, expected)
    torch_private.update_averages(averages := [torch.zeros_like(x) for x in xs], xs, 0.25)
    torch.testing.assert_close(averages, [x / 4 for x in xs])
    torch_private.multiply_(averages, 2.0)
    torch.testing.assert_close(averages, [x / 2 for x in xs])
    left = torch_private.distances(found, averages)
    assert left is found
    torch.testing.assert_close(
        found, [(e - a).abs() for e, a in zip(expected, averages, strict=True)]
    )


def test_fake_tensors_and_dispatch_modes() -> None:
    with torch_private.FakeTensorMode():
        assert isinstance(torch.empty(2), torch_private.FakeTensor)
    seen = []

    class Mode(torch_private.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Mode():
        torch.ones(2) + 1
    assert torch.ops.aten.add.Tensor in seen


def test_which_overload_of_an_operation_takes_a_generator() -> None:
    aten = torch.ops.aten
    assert torch_private.argument_names(aten.native_dropout.default) == ("input", "p", "train")
    assert torch_private.argument_defaults(aten.bernoulli.default) == {"generator": None}
    assert torch_private.takes_generator(aten.native_dropout.default) is None
    assert torch_private.takes_generator(aten.rand.default) is aten.rand.generator
    assert torch_private.takes_generator(aten.bernoulli_.float) is aten.bernoulli_.float


# --- transformers --------------------------------------------------------------------------------


@pytest.fixture
def model() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, attn_implementation="eager",
    )  # fmt: skip
    kind = transformers.LlamaForCausalLM
    assert transformers_private.builds_from_config(kind)
    hollow = transformers_private.build_from_config(kind, config)
    assert all(parameter.is_meta for parameter in hollow.parameters())
    return kind(config)


def test_how_routed_experts_are_computed() -> None:
    model, eager = tiny_experts("mixtral"), tiny_experts("mixtral")
    assert transformers_private.has_grouped_experts(model.config) == HAS_GROUPED
    transformers_private.set_experts_kind(eager.config, "eager")
    assert not transformers_private.has_grouped_experts(eager.config)
    torch.testing.assert_close(logits(model), logits(eager), rtol=0, atol=1e-5)
    experts: Any = model.get_submodule("model.layers.0.mlp.experts")
    x, ids = torch.randn(5, 32), torch.zeros(5, 1, dtype=torch.long)
    # Where all rows are the first expert's, its shapes are its values too.
    found = transformers_private.experts_by_shape(experts, x, ids, torch.ones(5, 1))
    torch.testing.assert_close(found, experts(x, ids, torch.ones(5, 1)))


def test_a_model_is_built_from_a_config_and_attends_as_it_says(model: Any) -> None:
    assert type(model) is transformers.LlamaForCausalLM
    assert not transformers_private.builds_from_config(nn.Linear)
    assert transformers_private.attention_kind(model.config) == "eager"
    x = torch.ones(1, 3, dtype=torch.int64)
    assert model(x, output_attentions=True).attentions[0] is not None
    transformers_private.set_attention_kind(model.config, "sdpa")
    assert transformers_private.attention_kind(model.config) == "sdpa"
    assert model(x).logits.shape == (1, 3, 8)


def test_where_a_config_came_from(model: Any, tmp_path: Path) -> None:
    assert transformers_private.origin(model.config) == transformers_private.origin(None) == ""
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert transformers_private.origin(again.config) == str(tmp_path)


def test_keys_left_out_of_a_file_and_blocks_kept_whole(model: Any) -> None:
    assert transformers_private.tied_keys(model) == {"lm_head.weight": "model.embed_tokens.weight"}
    assert transformers_private.unsaved_keys(model) == set()
    assert transformers_private.whole_blocks(model) == {"LlamaDecoderLayer"}
    assert transformers_private.whole_blocks(nn.Linear(1, 1)) == set()
    # A model whose head is not saved, as its weight is the embedding's in another shape.
    silero = type("Odd", (type(model),), {"_keys_to_ignore_on_save": ["lm_head.weight"]})
    assert transformers_private.unsaved_keys(silero(model.config)) == {"lm_head.weight"}


def test_the_dtypes_of_gradients_on_their_way_back() -> None:
    class Halved(torch.autograd.Function):
        @staticmethod
        def forward(_ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.half()

        @staticmethod
        def backward(_ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            return grad.float()

    x = torch.ones(2, requires_grad=True)
    float32 = {torch.float32}
    assert torch_private.gradient_dtypes(x.exp().sum()) == float32
    assert torch_private.gradient_dtypes(x.half().float().sum()) == {*float32, torch.float16}
    assert torch_private.gradient_dtypes(Halved.apply(x).float()) == {*float32, torch.float16}
    assert torch_private.gradient_dtypes(x.bfloat16().sum()) == {*float32, torch.bfloat16}
    assert torch_private.gradient_dtypes(torch.ones(1)) == set()


def test_weights_that_stay_float32() -> None:
    assert transformers_private.kept_in_float32(tiny("t5")) == {"float16": ["wo"], "bfloat16": []}
    assert transformers_private.kept_in_float32(nn.Linear(1, 1)) == {"float16": [], "bfloat16": []}
    odd: Any = nn.Module()
    odd._keep_in_fp32_modules, odd._keep_in_fp32_modules_strict = ["b"], {"a.*.c"}
    found = transformers_private.kept_in_float32(odd)
    assert found == {"float16": ["b", "a..*.c"], "bfloat16": ["a..*.c"]}


def test_who_computes_checkpointed_blocks_again(model: Any) -> None:
    assert not transformers_private.checkpoint_functions(model)
    checkpoint(model, use_reentrant=False)
    model.enable_input_require_grads()
    found = dict(transformers_private.checkpoint_functions(model))
    block = model.model.layers[0]
    function = found[block]
    calls: list[Any] = []

    def counted(run: Any, *inputs: Any) -> Any:
        calls.append(run)
        return function(run, *inputs)

    transformers_private.set_checkpoint_function(block, counted)
    x = torch.ones(1, 3, dtype=torch.int64)
    model.train()(x, labels=x).loss.backward()
    assert len(calls) == 1


def test_arguments_for_callbacks_set_nothing_up() -> None:
    kind = transformers.TrainingArguments
    arguments = transformers_private.bare_arguments(kind, torch.device("cpu"))
    assert isinstance(arguments, kind)
    assert arguments.device == torch.device("cpu")
    assert arguments.should_save
    ours = arguments.to_dict()
    theirs = kind(output_dir="x", use_cpu=True).to_dict()  # __post_init__ fills some fields in
    assert ours.keys() == theirs.keys()
    assert json.loads(arguments.to_json_string()) == ours
    assert arguments.to_sanitized_dict()["train_batch_size"] == 8


def test_hooks_that_make_the_embedded_input_need_gradients_are_seen(model: Any) -> None:
    assert not transformers_private.input_needs_grad(model)
    model.enable_input_require_grads()
    assert transformers_private.input_needs_grad(model)
    model.disable_input_require_grads()
    assert not transformers_private.input_needs_grad(model)


def test_one_module_starts_random_again_as_the_model_has_it() -> None:
    config = transformers.BertConfig(hidden_size=32, num_hidden_layers=0, initializer_range=0.5)
    model = transformers.BertForSequenceClassification(config)
    others = {key: p.clone() for key, p in model.bert.named_parameters()}
    nn.init.ones_(model.classifier.weight)
    nn.init.ones_(model.classifier.bias)
    transformers_private.draw_again(model, model.classifier)
    assert 0.3 < model.classifier.weight.std() < 0.7
    assert not model.classifier.bias.any()
    assert all(torch.equal(p, others[key]) for key, p in model.bert.named_parameters())


def test_a_rendered_chat_comes_with_what_its_marks_enclose() -> None:
    template = (
        "{{ s }}{% for m in messages %}{% generation %}{{ m.x }}{% endgeneration %}{% endfor %}"
    )
    found = transformers_private.render_chat(template, [{"x": "ab"}, {"x": "c"}], {"s": "-"})
    assert found == ("-abc", [(1, 3), (3, 4)])


def test_what_was_compiled_twice_knows_the_model() -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    model = Model()
    twice = torch.compile(torch.compile(model, backend="eager"), backend="eager")
    assert torch_private.compiled_from(twice) is model
    assert torch_private.compiled_from(len) is len


# --- ipykernel and ipywidgets --------------------------------------------------------------------


@pytest.mark.skipif(ipykernel.version_info < (7, 4), reason="it makes no such notes")
def test_a_comm_notes_whom_it_answers() -> None:
    assert subshell._NOTE in inspect.getsource(ipykernel.comm.comm)


def test_widgets_send_by_one_method() -> None:
    assert list(inspect.signature(ipywidgets.Widget._send).parameters) == ["self", "msg", "buffers"]
