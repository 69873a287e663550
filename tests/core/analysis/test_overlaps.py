import numpy as np
import pytest
import torch

from lora_lab import analysis
from lora_lab.analysis.overlaps import compare, compare_with_base
from lora_lab.errors import AdapterError, ConfigError, ModelError
from tests.helpers.fake_sites import delta, planted, site, weight


def phi(U, V):
    """Equation 4, one subspace at a time."""
    return np.array(
        [
            [
                np.linalg.norm(U[:, :i].T @ V[:, :j]) ** 2 / min(i, j)
                for j in range(1, V.shape[1] + 1)
            ]
            for i in range(1, U.shape[1] + 1)
        ]
    )


def directions(W, side, count):
    U, _, Vt = np.linalg.svd(np.asarray(W, np.float64))
    return (Vt.T if side == "input" else U)[:, :count]


@pytest.mark.parametrize("initial", [False, True])
@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("library", [np.array, torch.tensor])
def test_two_ranks_of_one_site(library, side, initial):
    first = site(1, r=2, library=library, initial=initial)
    second = site(2, r=5, scale=3.0, library=torch.tensor)
    found = compare(first, second, labels=("r=2", "r=5"), side=side)

    ranks = (4 if initial else 2), 5
    expected = phi(directions(delta(first), side, ranks[0]), directions(delta(second), side, 5))
    np.testing.assert_allclose(found.values, expected, atol=2e-5)
    assert found.values.dtype == np.float32
    n = {"input": 16, "output": 12}[side]
    assert (found.site, found.first, found.second) == ("layers.3.q", "r=2", "r=5")
    assert (found.side, found.n) == (side, n)
    i, j = np.indices(ranks) + 1
    np.testing.assert_allclose(found.random, np.maximum(i, j) / n)
    variance = 2 * i * j * (n - i) * (n - j) / (n**2 * (n - 1) * (n + 2))
    np.testing.assert_allclose(found.spread, np.sqrt(variance) / np.minimum(i, j))
    level = np.maximum(i, j) / n
    np.testing.assert_allclose(found.excess, (expected - level) / (1 - level), atol=1e-4)


@pytest.mark.parametrize(("side", "factor"), [("input", "A"), ("output", "B")])
def test_the_factors_own_order_is_the_papers(side, factor):
    first, second = site(1, r=4), site(2, r=4)
    found = compare(first, second, labels=("1", "2"), side=side, rank_by="factor")
    own = []
    for low in (first, second):
        X = getattr(low.update, factor).astype(np.float64)
        own.append(directions(X, side, 4))
    np.testing.assert_allclose(found.values, phi(*own), atol=2e-5)
    by_update = compare(first, second, labels=("1", "2"), side=side)
    # The same spaces in the end, reached in another order.
    np.testing.assert_allclose(found.values[3, 3], by_update.values[3, 3], atol=2e-5)
    assert not np.allclose(found.values, by_update.values, atol=1e-2)


def test_a_shared_direction_is_found_again():
    rng = np.random.default_rng(0)
    V = np.linalg.qr(rng.standard_normal((64, 8)))[0].T
    U = np.linalg.qr(rng.standard_normal((48, 8)))[0]
    first = planted(U[:, :4], [9, 3, 2, 1], V[[0, 1, 2, 3]])
    second = planted(U[:, 4:], [7, 3, 2, 1], V[[0, 4, 5, 6]])
    found = compare(first, second, labels=("seed 0", "seed 1"))
    # One shared direction among i and j: φ = 1/min(i, j).
    i, j = np.indices((4, 4)) + 1
    np.testing.assert_allclose(found.values, 1 / np.minimum(i, j), atol=1e-5)
    apart = compare(first, second, labels=("seed 0", "seed 1"), side="output")
    np.testing.assert_allclose(apart.values, 0, atol=1e-6)


def test_only_directions_that_are_there_count():
    low = site(r=5)
    low.update.B[:, 3:] = 0
    found = compare(low, low, labels=("a", "b"))
    assert found.values.shape == (3, 3)
    assert found.values.max() <= 1
    np.testing.assert_allclose(np.diag(found.values), 1, atol=1e-6)
    assert compare(low, low, labels=("a", "b"), most=2).values.shape == (2, 2)


@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("kind", ["numpy", "float32", "bfloat16"])
def test_an_update_against_its_base_weight(kind, side):
    low, W = site(), weight()
    given = W if kind == "numpy" else torch.tensor(W).to(getattr(torch, kind))
    exact = W if kind == "numpy" else given.double().numpy()
    found = compare_with_base(low, given, side=side, most=7)
    expected = phi(directions(delta(low), side, 3), directions(exact, side, 7))
    np.testing.assert_allclose(found.values, expected, atol=1e-4)
    assert (found.first, found.second, found.values.shape) == ("ΔW", "W₀", (3, 7))


def test_an_update_planted_on_two_directions_of_the_base():
    W = weight(d=12, k=16)
    U, _, Vt = np.linalg.svd(W.astype(np.float64))
    found = compare_with_base(planted(U[:, [2, 3]], [5, 4], Vt[[2, 3]]), W, most=6)
    expected = [[0, 0, 1, 1, 1, 1], [0, 0, 0.5, 1, 1, 1]]
    np.testing.assert_allclose(found.values, expected, atol=1e-5)


def test_the_public_names():
    assert analysis.compare is compare
    assert analysis.compare_with_base is compare_with_base


def test_two_different_matrices_are_refused():
    with pytest.raises(AdapterError, match=r"q \(12 × 16\) and .*q \(12 × 20\) are not the same"):
        compare(site(), site(k=20), labels=("a", "b"))
    with pytest.raises(AdapterError, match=r"layers\.3\.q .* and layers\.3\.v .*one matrix of two"):
        compare(site(), site(name="layers.3.v"), labels=("a", "b"))
    with pytest.raises(AdapterError, match=r"ΔW is 12 × 16 but W₀ is 9 × 16; .*another base"):
        compare_with_base(site(), np.zeros((9, 16)))


def test_what_has_no_directions_is_named():
    zero, broken = site(), site()
    zero.update.B[:] = 0
    broken.update.A[0, 0] = np.nan
    with pytest.raises(AdapterError, match=r"^layers\.3\.q \(r=4\): ΔW is zero.*train a few steps"):
        compare(site(), zero, labels=("r=3", "r=4"))
    with pytest.raises(AdapterError, match=r"^layers\.3\.q \(seed 1\): .*training diverged"):
        compare(broken, site(), labels=("seed 1", "seed 2"))
    with pytest.raises(AdapterError, match=r"^layers\.3\.q \(x\): .*training diverged"):
        compare(broken, site(), labels=("x", "y"), rank_by="factor")
    with pytest.raises(AdapterError, match=r"^layers\.3\.q: ΔW is zero"):
        compare_with_base(zero, weight())
    with pytest.raises(ModelError, match=r"^layers\.3\.q: W₀ holds NaN"):
        compare_with_base(site(), np.full((12, 16), np.nan))


def test_settings_that_do_not_exist_are_refused():
    with pytest.raises(ConfigError, match="side is 'left'; use 'input' or 'output'"):
        compare(site(), site(), labels=("a", "b"), side="left")
    with pytest.raises(ConfigError, match="rank_by is 'A'; use 'update' or 'factor'"):
        compare(site(), site(), labels=("a", "b"), rank_by="A")
    with pytest.raises(ConfigError, match="most is 0"):
        compare_with_base(site(), weight(), most=0)
