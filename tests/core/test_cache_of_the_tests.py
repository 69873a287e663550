"""The tests' own cache: the key of their runs is not the user's, the models are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lora_lab._util.files import cache_folder
from lora_lab.training.api import train
from tests.helpers.tiny_run import CONFIG, tiny_lm, tiny_task


def test_a_run_of_the_tests_makes_its_key_in_their_cache(tmp_path):
    users = Path.home() / ".cache" / "lora-lab"
    if os.environ["LORA_LAB_CACHE"] == str(users):
        pytest.skip("LORA_LAB_CACHE names the user's own cache")
    key = cache_folder() / "origin.key"
    train(tiny_lm(), tiny_task(), CONFIG, output_dir=tmp_path, max_steps=1).result(60)
    assert key.is_file()
    assert key.parent != users


def test_a_process_that_a_test_starts_has_the_same_cache():
    code = "from lora_lab._util.files import cache_folder; print(cache_folder())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == cache_folder()
