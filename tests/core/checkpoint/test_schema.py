"""Whatever stands in an adapter's settings is of its type, or is refused in one line."""

from __future__ import annotations

import json

import pytest

import lora_lab as ll
from lora_lab.checkpoint.reader import read_adapter
from lora_lab.errors import AdapterError
from tests.helpers.tiny_models import tiny

OF_OTHER_TYPES = {
    "target_modules": [3, [1], {"a": 1}],
    "target_parameters": ["x", [""]],
    "modules_to_save": [True, [2]],
    "rank_pattern": ["x", [["q", 1]]],
    "alpha_pattern": [5],
    "task_type": [["SEQ_CLS"], 3],
    "auto_mapping": ["os"],
    "base_model_name_or_path": [{"a": 1}],
    "use_dora": ["no"],
    "lora_bias": [1],
    "bias": [["none"]],
    "init_lora_weights": [2.5],
    "trainable_token_indices": ["1", {"a": 1}, [True]],
}


@pytest.mark.parametrize("config", [ll.LoraConfig(r=2), ll.IA3Config()], ids=["LoRA", "IA3"])
def test_every_setting_that_is_read_is_of_its_type(config, tmp_path):
    model = tiny("llama")
    ll.attach(model, config)
    ll.save_adapter(model, tmp_path)
    path = tmp_path / "adapter_config.json"
    settings = json.loads(path.read_text())
    for name, values in OF_OTHER_TYPES.items():
        for value in values:
            path.write_text(json.dumps({**settings, name: value}))
            with pytest.raises(
                AdapterError, match=f": {name} is n.*; fetch the adapter again"
            ) as said:
                read_adapter(tmp_path)
            assert "\n" not in str(said.value)
