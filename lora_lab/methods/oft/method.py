"""OFT's entry in the registry."""

from __future__ import annotations

from lora_lab.methods.descriptor import Field, Method, PeftForm, register
from lora_lab.methods.lora.method import MODULES_TO_SAVE
from lora_lab.methods.oft.config import OFTConfig, from_peft

register(
    Method(
        name="OFT",
        key="oft",
        config=OFTConfig,
        adapter="lora_lab.methods.oft.adapter:OFTAdapter",
        cost="lora_lab.methods.oft.cost:oft_cost",
        fields=(
            Field("target_modules", "targets", "roles or modules", tuple, "targets"),
            Field("oft_block_size", "block size", "features that a block of R turns", int),
            Field("module_dropout", "block dropout", "share of blocks left out in a step"),
            Field("block_share", "shared block", "one block for all of a matrix", bool),
            Field("coft", "COFT", "keep R near to the identity", bool),
            MODULES_TO_SAVE,
        ),
        about="what the layers read is rotated in blocks by learned matrices",
        no_ranks="learns rotations; its ΔW has full rank",
        rate_from="as LoRA's, as in PEFT's comparison on MetaMathQA",
        peft=PeftForm("OFT", ".oft_R.weight", from_peft),
        order=26,
    )
)
