"""A run that trains routed experts, from its start to what is read of it afterwards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import lora_lab as ll
from lora_lab.models import LoadedModel
from tests.helpers.tiny_experts import tiny_experts
from tests.helpers.tiny_run import tiny_task
from tests.helpers.tiny_text import tiny_tokenizer


def test_a_run_over_routed_experts_records_and_saves_each_of_them(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_experts("mixtral", vocab_size=max(99, len(tokenizer)))
    lm = LoadedModel.given(model, tokenizer, "tiny-experts")
    config = ll.LoraConfig(
        r=2, target_modules=["o_proj"], target_parameters=["gate_up_proj", "down_proj"]
    )
    options = {"max_steps": 3, "per_device_train_batch_size": 4, "eval_examples": 0}
    run = ll.train(lm, tiny_task(), config, output_dir=tmp_path, **options)
    run.wait()
    assert run.snapshot.failure is None
    name = "model.layers.1.mlp.experts.down_proj[3]"
    adapter = ll.attached(model)["default"]
    with torch.no_grad():
        site = adapter.sites[name]
        values = np.linalg.svd((site.scale * site.B @ site.A).numpy(), compute_uv=False)[:2]
    rows = {row.name: row for row in ll.analyze(model).rows}
    assert len(rows) == 2 + 2 * 2 * 4
    spectra = run.snapshot.spectra
    assert spectra is not None
    np.testing.assert_allclose(spectra.singular_values[name], values, rtol=1e-4, atol=1e-7)
    again = tiny_experts("mixtral", vocab_size=max(99, len(tokenizer)))
    (folder,) = (path for path in tmp_path.iterdir() if (path / "adapter").is_dir())
    loaded = ll.load_adapter(again, folder / "adapter")
    assert torch.equal(loaded.sites[name].A, site.A)
