"""1,000 seeded mutations of good adapter folders: a clear error, or the same adapter.

Never another exception, a hang, a changed model, or silently other outputs.
"""

import contextlib
import json
import random
import shutil
import struct
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

import lora_lab as ll
from lora_lab.checkpoint import read_factors
from lora_lab.errors import LoraLabError
from tests.helpers.file_mutations import WAYS
from tests.helpers.lora_outputs import outputs, stirred
from tests.helpers.tiny_models import tiny, tiny_inputs

MUTATIONS = 1_000
CHUNKS = 20
LONGEST = 2.0  # seconds for one mutation

BASES = {
    "llama": {"rank_pattern": {"v": 3}, "alpha_pattern": {"v": 5}, "target_modules": ["q", "v"]},
    "gpt2": {"use_dora": True, "target_modules": ["q", "v"]},
    "bert": {"target_modules": ["q"], "modules_to_save": ["classifier"], "use_rslora": True},
    "smollm": {"target_modules": ["embed_tokens", "q"]},
    "vit": {"target_modules": ["projection", "v"]},
}


def sort_header(path):
    """safetensors writes its metadata in any order; then a seed would not say which byte flips."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    text = json.dumps(json.loads(data[8 : 8 + length]), sort_keys=True).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """{base: (bare model, inputs, outputs bare, outputs adapted, good folder)}."""
    found = {}
    for name, changes in BASES.items():
        model = tiny(name)
        batch = tiny_inputs(model)
        bare = outputs(model, batch)
        folder = tmp_path_factory.mktemp(name)
        stirred(ll.attach(model, ll.LoraConfig(r=2, lora_alpha=4, **changes)))
        adapted = outputs(model, batch)
        assert not torch.allclose(adapted, bare, atol=1e-3)
        ll.save_adapter(model, folder)
        sort_header(folder / "adapter_model.safetensors")
        ll.detach(model)
        found[name] = model, batch, bare, adapted, folder
    return found


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_a_mutated_folder_ends_in_one_line_or_in_the_same_adapter(chunk, good, tmp_path):
    endings = {"refused": 0, "same": 0}
    for seed in range(chunk, MUTATIONS, CHUNKS):
        rng = random.Random(seed)
        model, batch, bare, adapted, source = good[rng.choice(list(BASES))]
        folder = tmp_path / str(seed)
        shutil.copytree(source, folder)
        way = rng.choice(WAYS)
        way(folder, rng)
        what = f"seed {seed}, {way.__name__}"
        start = time.monotonic()
        try:
            ll.load_adapter(model, folder)
        except LoraLabError as error:
            line = str(error)
            assert "\n" not in line, what
            assert 10 < len(line) < 1_000, (what, line)
            assert not ll.attached(model), what
            assert torch.equal(outputs(model, batch), bare), what
            endings["refused"] += 1
        else:
            # Without the names of the slices the same update is held in another form.
            torch.testing.assert_close(
                outputs(model, batch), adapted, rtol=1e-5, atol=1e-5, msg=what
            )
            endings["same"] += 1
        finally:
            ll.detach(model)
        with contextlib.suppress(LoraLabError):
            read_factors(folder)
        assert time.monotonic() - start < LONGEST, what
        shutil.rmtree(folder)
    # Both ends occur, so neither half of the test is idle.
    assert endings["refused"] > 20
    assert endings["same"] > 0


@pytest.mark.parametrize("chunk", range(4))
def test_without_a_checksum_no_mutation_ends_otherwise_than_in_one_line(chunk, good, tmp_path):
    """Files of other makers: a changed number cannot be told, all else can."""
    for seed in range(chunk, 300, 4):
        rng = random.Random(seed)
        model, batch, bare, _, source = good[rng.choice(list(BASES))]
        folder = tmp_path / str(seed)
        shutil.copytree(source, folder)
        path = folder / "adapter_model.safetensors"
        save_file(load_file(path), path, metadata={"format": "pt"})
        rng.choice(WAYS)(folder, rng)
        start = time.monotonic()
        with contextlib.suppress(LoraLabError):
            ll.load_adapter(model, folder)
        ll.detach(model)
        assert torch.equal(outputs(model, batch), bare), seed
        with contextlib.suppress(LoraLabError):
            read_factors(folder)
        assert time.monotonic() - start < LONGEST, seed
        shutil.rmtree(folder)
