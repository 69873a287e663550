"""What is tried on a device that does not exist; `fake_device_runs` tries it.

Apart from it: who imports that has the device for good.
"""

from __future__ import annotations

from typing import Any

import lora_lab as ll

ALL = "all-linear"
LORA = ll.LoraConfig(r=2, target_modules=ALL, lora_dropout=0.1)
EMBED = ll.PrefixEmbedConfig(2, 1)
METHODS: dict[str, Any] = {
    "FT": ll.FullConfig(),
    "FT-Top1": ll.FullConfig(top_layers=1),
    "BitFit": ll.BitFitConfig(new_biases=True),
    "PreEmbed": EMBED,
    "PreLayer": ll.PrefixLayerConfig(2, 1),
    "Adapter^H": ll.BottleneckConfig("H", r=2),
    "Adapter^L": ll.BottleneckConfig("L", r=2),
    "Adapter^P": ll.BottleneckConfig("P", r=2),
    "Adapter^D": ll.BottleneckConfig("D", r=2, drop_layers=0),
    "LoRA": LORA,
    "DoRA": ll.LoraConfig(r=2, target_modules=ALL, use_dora=True),
    "LoRA-FA": ll.LoraConfig(r=2, target_modules=["q", "v"], use_lorafa=True, use_rslora=True),
    "LoRA, tokens": ll.LoraConfig(r=2, target_modules=["q"], trainable_token_indices=[3, 4]),
    "PiSSA": ll.LoraConfig(r=2, target_modules=["q", "down"], init_lora_weights="pissa"),
    "EVA": ll.LoraConfig(r=2, target_modules=["q", "down"], init_lora_weights="eva"),
    "AdaLoRA": ll.AdaLoraConfig(target_r=1, init_r=2, tinit=0, tfinal=0, deltaT=1),
    "IA3": ll.IA3Config(),
    "OFT": ll.OFTConfig(oft_block_size=4, target_modules=["o", "down"]),
    "LoRA+PE": [LORA, EMBED],
}
MODELS = ("llama", "gpt2", "bert", "t5")
DTYPES = ("float32", "bfloat16", "float16")
TWO = "two devices"
STEPS = 2
FAULTS = {
    # what is planted: what is said of it
    "a factor on another device": "attach: model.layers.0",
    "tensors of two devices meet": "train: FakeTensorDeviceMismatchError",
    "a tensor from the CPU meets": "train: FakeTensorDeviceMismatchError",
    "a tensor made on the CPU": "CPU tensor: aten.zeros",
    "a number made on the CPU": "CPU tensor: aten.lift_fresh",
    "a number read": "wait: aten._local_scalar_dense",
    "a number brought": "wait: aten._to_copy",
    "a tensor read": "wait: aten._to_copy",
    "a tensor brought": "wait: aten.copy_",
    "a mask for an index": "wait: aten.index",
    "places counted": "wait: aten.nonzero",
    "a second transfer of the numbers": "in before_update",
    "a checkpoint left on the device": "checkpoint: ",
    "weights not put back": "detach: ",
}
