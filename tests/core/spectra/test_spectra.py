"""What holds for the package as a whole: its libraries, types and names."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lora_lab import spectra
from tests.helpers.built_matrices import built, factors, orthonormal


def test_half_types_are_promoted_and_autograd_is_left_alone():
    A = torch.randn(2, 6, dtype=torch.bfloat16, requires_grad=True)
    B = torch.randn(5, 2, dtype=torch.bfloat16, requires_grad=True)
    U, s, Vt = spectra.singular_triplets(A, B, 2.0)
    assert {x.dtype for x in (U, s, Vt)} == {torch.float32}
    assert not s.requires_grad
    exact = built(A.detach().float().numpy(), B.detach().float().numpy(), 2.0)
    np.testing.assert_allclose(((U * s) @ Vt).numpy(), exact, atol=1e-5)
    assert spectra.singular_values(np.ones((1, 3), np.float16), np.ones((3, 1))).dtype == np.float64


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_comes_in_says_what_comes_out(dtype):
    rng = np.random.default_rng(0)
    A, B = factors(rng, 3, 8, 10, dtype)
    W = rng.standard_normal((8, 10)).astype(dtype)
    for make, kind in ((np.array, np.ndarray | np.generic), (torch.tensor, torch.Tensor)):
        A_, B_, W_ = make(A), make(B), make(W)
        U, s, Vt = spectra.singular_triplets(A_, B_, 2.0)
        results = [
            *(U, s, Vt, spectra.singular_values(A_, B_), spectra.amplification(U, s, Vt, W_)),
            *spectra.singular_triplets_of_sum([(A_, B_, 1.0), (A_, B_, 0.5)]),
            *spectra.top_directions(W_, 2),
            *spectra.top_directions_of_update(W_, A_, B_, 2.0, 2),
            *(measure(s) for measure in (spectra.effective_rank, spectra.participation_ratio)),
            *(measure(s) for measure in (spectra.frobenius, spectra.nuclear_norm)),
            *(spectra.subspace_overlap(U, U), spectra.principal_angles(U, U[:, :2])),
            *(spectra.projection_metric(U, U), spectra.projected_norm(U, W_, Vt)),
            *(spectra.sampled_random_projection(W_, 2, 3, 0), spectra.matrix_norm(W_)),
            *(spectra.best_match(U, U), spectra.window_match(U, U, 0, 1)),
            spectra.excess_overlap(
                spectra.subspace_overlap(U, U), spectra.random_subspace_overlap(3, 3, 8)
            ),
        ]
        assert all(isinstance(x, kind) for x in results)
        assert {str(x.dtype).removeprefix("torch.") for x in results} == {dtype}


def test_torch_and_numpy_are_not_mixed_the_wrong_way_round():
    with pytest.raises(TypeError, match="same library"):
        spectra.singular_values(np.ones((1, 3)), torch.ones(3, 1))
    values = spectra.singular_values(torch.ones(1, 3), np.ones((3, 1), np.float32))
    assert float(values) == pytest.approx(3)


def test_spectra_never_import_torch():
    package = Path(spectra.__file__).parent
    for path in package.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        imported |= {str(n.module) for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert not any(name.partition(".")[0] == "torch" for name in imported), path.name
    # `lora_lab` itself needs torch for models; its spectra alone do not.
    code = (
        "import sys, types\n"
        "sys.modules['torch'] = None\n"
        "house = sys.modules['lora_lab'] = types.ModuleType('lora_lab')\n"
        f"house.__path__ = [{str(package.parent)!r}]\n"
        "import numpy as np\n"
        "from lora_lab import spectra\n"
        "U, s, Vt = spectra.singular_triplets(np.eye(2, 5), np.eye(4, 2), 3.0)\n"
        "assert abs(s - 3).max() < 1e-12 and spectra.numerical_rank(s) == 2\n"
        "assert spectra.subspace_overlap(U, U).shape == (2, 2)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_nothing_given_is_changed():
    rng = np.random.default_rng(1)
    A, B = factors(rng, 3, 8, 10)
    W, X = rng.standard_normal((8, 10)), orthonormal(rng, 8, 5)
    before = [x.copy() for x in (A, B, W, X)]
    U, s, Vt = spectra.singular_triplets(A, B, 2.0)
    spectra.amplification(U, s, Vt, W)
    spectra.singular_triplets_of_sum([(A, B, 2.0), (A, B, -1.0)])
    spectra.top_directions_of_update(W, A, B, 2.0, 3)
    spectra.window_match(U, X, 0, 2)
    for x, kept in zip((A, B, W, X), before, strict=True):
        np.testing.assert_array_equal(x, kept)
