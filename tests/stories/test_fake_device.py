"""Every method on a GPU that does not exist, one and two of it: `tests/helpers/fake_device.py`."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from torch.utils import backend_registration

from tests.helpers.fake_device_cases import DTYPES, FAULTS, METHODS, MODELS, TWO

pytestmark = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch knows no devices in Python",
)


@pytest.fixture(scope="module")
def wrong():
    # The device's name is the whole process's.
    command = [sys.executable, "-m", "tests.helpers.fake_device_runs"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("what", [*DTYPES, TWO])
def test_every_method_is_right_on_a_gpu(wrong, model, what):
    cases = {method: wrong[f"{model}, {method}, {what}"] for method in METHODS}
    assert {method: lines for method, lines in cases.items() if lines} == {}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(wrong, fault):
    assert any(FAULTS[fault] in line for line in wrong[fault]), wrong[fault]
