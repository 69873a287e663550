import copy
import math

import numpy as np
import pytest
import torch

from lora_lab.analysis.intruders import SiteIntruders, find_intruders
from lora_lab.analysis.scaled_intruders import scaled_intruders
from lora_lab.checkpoint import save_adapter
from lora_lab.configs import LoraConfig
from lora_lab.errors import AdapterError, ConfigError, ModelError
from lora_lab.methods.api import attach, detach, merge
from lora_lab.methods.attached import activate, active, attached
from tests.helpers.fake_sites import delta, planted, site, weight
from tests.helpers.tiny_models import tiny, tiny_inputs


def left_similarity(tuned, W, k):
    """max|cos| of the tuned weight's top k left vectors with all of W₀'s, in float64."""
    Y, s, _ = np.linalg.svd(np.asarray(tuned, np.float64))
    X = np.linalg.svd(np.asarray(W, np.float64), full_matrices=False)[0]
    return s[:k], np.abs(X.T @ Y[:, :k]).max(axis=0)


@pytest.mark.parametrize("initial", [False, True])
@pytest.mark.parametrize("kind", ["numpy", "float32", "bfloat16"])
def test_the_similarity_of_the_strongest_directions(kind, initial):
    low, W = site(4, d=40, k=30, scale=0.03, initial=initial), weight(4, d=40, k=30)
    given = W if kind == "numpy" else torch.tensor(W).to(getattr(torch, kind))
    exact = W if kind == "numpy" else given.double().numpy()
    s, similarity = left_similarity(exact + delta(low), exact, 6)
    epsilon = np.sort(similarity)[2:4].mean()
    weights = {"layers.3.q": given}
    (found,) = find_intruders([low], weights.__getitem__, top_k=6, epsilon=epsilon)

    np.testing.assert_allclose(found.singular_values, s, rtol=1e-5)
    np.testing.assert_allclose(found.similarity, similarity, atol=1e-4)
    np.testing.assert_array_equal(found.intruder, similarity < epsilon)
    assert found.count == len(found.s) == 3
    assert (found.name, found.layer, found.role, found.stack) == ("layers.3.q", 3, "q", "decoder")
    assert (found.n, found.epsilon) == (40, epsilon)
    assert found.random_line == pytest.approx(math.sqrt(2 * math.log(40) / 40))
    # The triplets are those of the tuned weight.
    tuned = exact + delta(low)
    np.testing.assert_allclose(tuned @ found.Vt.T, found.U * found.s, atol=1e-4)
    np.testing.assert_array_equal(found.s, found.singular_values[found.intruder])


@pytest.mark.parametrize("shape", [(96, 64), (64, 64), (64, 96)])
def test_a_planted_intruder_is_found_again(shape):
    d, k = shape
    W = weight(d=d, k=k)
    X, _, Zt = np.linalg.svd(W.astype(np.float64), full_matrices=False)
    # As far from every direction of W₀ as can be: outside their span, or a little of each.
    u = np.linalg.svd(W.astype(np.float64))[0][:, -1] if d > k else X @ np.full(64, 1 / 8)
    v = Zt.T @ np.full(64, 1 / 8)
    low = planted(u[:, None], [50.0], v[None, :])
    (found,) = find_intruders([low], lambda _: W)
    assert found.count == 1
    assert found.intruder.tolist() == [True] + [False] * 9
    assert found.similarity[0] == pytest.approx(0 if d > k else 1 / 8, abs=0.02)
    assert abs(found.U[:, 0] @ u) > 0.999
    assert abs(found.Vt[0] @ v) > 0.999
    assert found.s[0] == pytest.approx(left_similarity(W + delta(low), W, 1)[0][0], rel=1e-5)


def test_strengthening_what_the_base_has_is_no_intruder():
    W = weight(d=64, k=48)
    U, _, Vt = np.linalg.svd(W.astype(np.float64))
    low = planted(U[:, [20, 30]], [10.0, 9.0], Vt[[20, 30]])
    (found,) = find_intruders([low], lambda _: W)
    assert found.count == 0
    np.testing.assert_allclose(found.similarity, 1, atol=1e-4)
    assert found.U.shape == (64, 0)
    assert found.Vt.shape == (0, 48)


def test_a_turn_among_equal_directions_shows_in_the_window():
    rng = np.random.default_rng(0)
    X = np.linalg.qr(rng.standard_normal((64, 40)))[0]
    Z = np.linalg.qr(rng.standard_normal((64, 40)))[0]
    # Four directions of nearly one σ; a tiny update makes the even mixture of them the strongest.
    s = np.concatenate([[2, 1.9], [1.5, 1.4999, 1.4998, 1.4997], np.linspace(1, 0.1, 34)])
    W = ((X * s) @ Z.T).astype(np.float32)
    mixed = (X[:, 2:6].sum(1) / 2)[:, None], (Z[:, 2:6].sum(1) / 2)[None, :]
    (found,) = find_intruders([planted(mixed[0], [0.05], mixed[1])], lambda _: W, epsilon=0.6)
    assert found.intruder[2]
    assert found.similarity[2] == pytest.approx(0.5, abs=0.02)
    assert found.window_similarity[2] == pytest.approx(1, abs=1e-3)
    # An intruder in truth stays strange to its window.
    strange = np.linalg.qr(np.column_stack([X, rng.standard_normal(64)]))[0][:, -1:]
    (found,) = find_intruders([planted(strange, [5.0], Z[:, :1].T)], lambda _: W)
    assert found.intruder[0]
    assert found.window_similarity[0] < 0.5


def test_an_update_that_is_still_zero_has_none():
    low = site(d=40, k=30)
    low.update.B[:] = 0
    (found,) = find_intruders([low], lambda _: weight(d=40, k=30), top_k=50)
    assert found.count == 0
    np.testing.assert_allclose(found.similarity, np.ones(30), atol=1e-5)


def test_bad_input_names_the_site_and_the_mend():
    broken = site()
    broken.update.A[0, 0] = np.nan
    with pytest.raises(AdapterError, match=r"^layers\.3\.q: .*training diverged"):
        find_intruders([broken], lambda _: weight())
    with pytest.raises(AdapterError, match=r"^layers\.3\.q: ΔW is 12 × 16 but W₀ is 16 × 12"):
        find_intruders([site()], lambda _: weight().T)
    with pytest.raises(ModelError, match=r"^layers\.3\.q: W₀ holds NaN"):
        find_intruders([site()], lambda _: np.full((12, 16), np.nan))
    with pytest.raises(ConfigError, match="top_k is 0"):
        find_intruders([], lambda _: None, top_k=0)
    for epsilon in (0, 1.5, math.nan):
        with pytest.raises(ConfigError, match=r"epsilon is .*above 0 and at most 1"):
            find_intruders([], lambda _: None, epsilon=epsilon)


# The intervention ---------------------------------------------------------------------------------


def adapted(architecture="llama", **changes):
    """A tiny model with a strong random update, and the directions that it brought."""
    model = tiny(architecture)
    torch.manual_seed(0)
    settings = {"r": 4, "lora_alpha": 40, "target_modules": ["q", "v"], "init_lora_weights": False}
    adapter = attach(model, LoraConfig(**(settings | changes)))
    found = find_intruders(adapter.sites.values(), adapter.base_weight, epsilon=0.8)
    assert sum(item.count for item in found) > 4
    return model, adapter, found


def logits(model):
    with torch.no_grad():
        return model(**tiny_inputs(model)).logits


def built_logits(model, adapter, found, factor):
    """The same of a plain model in float64 whose weights were built: no adapter in it."""
    weights = {}
    for low, item in zip(adapter.sites.values(), found, strict=True):
        update = delta(low) + (factor - 1) * (
            item.U.astype(np.float64) * item.s.astype(np.float64)
        ) @ item.Vt.astype(np.float64)
        weights.setdefault(low.site.module, []).append((low.site, update))
    plain = copy.deepcopy(model)
    detach(plain)
    plain = plain.double()
    for module, updates in weights.items():
        stored = plain.get_submodule(module).weight
        for where, update in updates:
            with torch.no_grad():
                matrix = stored.T if where.transposed else stored
                if where.rows is not None:
                    rows = where.rows
                    numbers = [
                        group * rows.group_size + rows.offset + i
                        for group in range(rows.groups)
                        for i in range(rows.width)
                    ]
                    matrix[numbers] += torch.tensor(update)
                else:
                    matrix += torch.tensor(update)
    return logits(plain)


@pytest.mark.parametrize("factor", [0, 0.3, 1.5])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt-neox"])
def test_inside_the_block_the_model_is_the_one_built_without_them(architecture, factor):
    model, adapter, found = adapted(architecture)
    whole = logits(model)
    with scaled_intruders(model, found, factor):
        scaled = logits(model)
    expected = built_logits(model, adapter, found, factor)
    assert float((scaled - expected).abs().max() / expected.abs().max()) < 1e-4
    assert float((scaled - whole).abs().max() / whole.abs().max()) > 1e-2
    assert torch.equal(logits(model), whole)


def test_a_factor_of_one_leaves_the_logits_equal():
    model, _, found = adapted()
    whole = logits(model)
    with scaled_intruders(model, found, 1):
        assert torch.equal(logits(model), whole)


def state(model):
    parameters = {name: (id(p), p.requires_grad) for name, p in model.named_parameters()}
    values = {name: value.clone() for name, value in model.state_dict().items()}
    return parameters, values, active(model), list(attached(model))


def assert_same_state(before, after):
    assert after[0] == before[0]
    assert list(after[1]) == list(before[1])
    assert all(torch.equal(after[1][name], value) for name, value in before[1].items())
    assert after[2:] == before[2:]


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_as_before_afterwards_also_after_an_error(fails):
    model, adapter, found = adapted()
    before = state(model)
    optimizer = torch.optim.AdamW(adapter.parameters())
    base = {name: p for name, p in model.named_parameters() if "lora" not in name}
    versions = {name: p._version for name, p in base.items()}

    def use():
        with scaled_intruders(model, found, 0.25):
            logits(model)
            assert torch.equal(base["model.norm.weight"], before[1]["model.norm.weight"])
            if fails:
                raise KeyError("inside")

    if fails:
        with pytest.raises(KeyError, match="inside"):
            use()
    else:
        use()
    assert_same_state(before, state(model))
    # Not even written and restored: W₀ was never touched, and the optimizer still has its own.
    assert {name: p._version for name, p in base.items()} == versions
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in adapter.parameters()}


def test_another_adapter_is_active_inside_the_block_only():
    model, _, found = adapted()
    whole = logits(model)
    attach(model, LoraConfig(r=2, target_modules=["down"], init_lora_weights=False), name="second")
    second = logits(model)
    before = state(model)
    with scaled_intruders(model, found, 1, name="default"):
        assert active(model) == "default"
        assert torch.equal(logits(model), whole)
    assert_same_state(before, state(model))
    assert torch.equal(logits(model), second)
    activate(model, None)
    with scaled_intruders(model, found, 0, name="default"):
        pass
    assert active(model) is None


def test_what_cannot_be_scaled_is_refused_and_nothing_changes():
    model, _, found = adapted()
    before = state(model)
    foreign = SiteIntruders(
        *("model.layers.9.self_attn.q_proj", 9, "q", "", 32),
        *(np.ones(1), np.zeros(1), np.zeros(1), 0.4, 0.5, np.ones(1, bool)),
        *(np.ones((32, 1)), np.ones(1), np.ones((1, 32))),
    )
    with (
        pytest.raises(AdapterError, match=r"'default' has no matrix .*layers\.9.*find its own"),
        scaled_intruders(model, [*found, foreign], 0),
    ):
        pass
    with (
        pytest.raises(AdapterError, match="no adapter is called 'mine'; attached are 'default'"),
        scaled_intruders(model, found, 0, name="mine"),
    ):
        pass
    with (
        pytest.raises(ConfigError, match="λ is nan; it must be a finite number"),
        scaled_intruders(model, found, math.nan),
    ):
        pass
    assert_same_state(before, state(model))
    activate(model, None)
    with (
        pytest.raises(AdapterError, match="no adapter is active; name one of 'default'"),
        scaled_intruders(model, found, 0),
    ):
        pass
    merge(model, "default")
    with (
        pytest.raises(AdapterError, match=r"'default' is merged; call unmerge\(model\) first"),
        scaled_intruders(model, found, 0),
    ):
        pass
    with (
        pytest.raises(AdapterError, match="no adapter is active; name one of none"),
        scaled_intruders(tiny("llama"), found, 0),
    ):
        pass


def test_in_half_precision_what_cancels_leaves_no_rounding_behind():
    errors = []
    for seed in range(4):
        model = tiny("llama").to(torch.bfloat16)
        torch.manual_seed(seed)
        adapter = attach(model, LoraConfig(r=4, lora_alpha=40, init_lora_weights=False))
        found = find_intruders(adapter.sites.values(), adapter.base_weight, epsilon=0.8)
        for factor in (1, 0.3, 0):
            with scaled_intruders(model, found, factor):
                scaled = logits(model)
            assert scaled.dtype == torch.bfloat16
            expected = built_logits(model, adapter, found, factor)
            errors.append(float((scaled - expected).norm() / expected.norm()))
    # The base model's own rounding is 0.009; two updates side by side that cancel give 0.05.
    assert sum(errors) / len(errors) < 0.02


@pytest.mark.filterwarnings("ignore")
def test_peft_finds_as_many_and_leaves_the_same_model(tmp_path):
    peft = pytest.importorskip("peft")
    from peft.tuners.lora.intruders import reduce_intruder_dimension

    # Of full rank: PEFT cuts what is left back to r directions, which then takes nothing away.
    model, adapter, found = adapted(r=32, target_modules=["q", "o"])
    save_adapter(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(tiny("llama"), tmp_path)
    lines = []
    reduce_intruder_dimension(
        theirs, threshold_epsilon=0.8, mitigation_lambda=0.25, logging_sink=lines.append
    )
    counts = {}
    for line in lines[: len(adapter.sites)]:
        path, _, told = line.removeprefix("base_model.model.").partition(": ")
        counts[path] = 0 if told == "No intruders" else int(told.removeprefix("Intruders: "))
    assert {item.name: item.count for item in found} == counts
    with scaled_intruders(model, found, 0.25):
        expected = logits(theirs)
        assert float((logits(model) - expected).abs().max() / expected.abs().max()) < 1e-4


def test_the_places_are_those_of_the_sites():
    _, adapter, found = adapted("gpt2")
    assert [item.name for item in found] == list(adapter.sites)
    assert [item.n for item in found] == [low.site.out_features for low in adapter.sites.values()]
    assert [item.layer for item in found] == [low.site.layer for low in adapter.sites.values()]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"target_modules": ["embed_tokens"]}, "an embedding"),
        ({"use_dora": True}, "a matrix with DoRA"),
    ],
)
def test_sites_that_do_not_add_to_a_product_are_refused(changes, what):
    model = tiny("llama")
    adapter = attach(model, LoraConfig(r=2, init_lora_weights=False, **changes))
    found = find_intruders(adapter.sites.values(), adapter.base_weight)
    name = found[0].name
    with pytest.raises(AdapterError) as caught, scaled_intruders(model, found, 0.5):
        pass
    assert str(caught.value) == (
        f"{name} is {what}, whose intruders cannot be scaled; leave it out"
    )
