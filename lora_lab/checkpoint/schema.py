"""What an adapter's settings hold, as far as they are read: msgspec holds them to these types.

Whoever wrote them: PEFT of any version, another tool, a stranger. Fields that are not here are left
as they are, and none has to be there. A description follows on "is".
"""

from __future__ import annotations

from typing import Annotated, Any, TypedDict

from msgspec import Meta

Rank = Annotated[int, Meta(ge=1, le=2**53)]
Alpha = Annotated[float, Meta(gt=0, le=1e9)]
Switch = Annotated[bool | None, Meta(description="neither true nor false")]
Text = Annotated[str | None, Meta(description="no text")]
FilledName = Annotated[str, Meta(min_length=1)]
Names = Annotated[list[FilledName] | None, Meta(description="no list of names")]
ByName = Annotated[dict[str, Any] | None, Meta(description="no mapping")]
Part = Annotated[str, Meta(pattern=r"\A[0-9]+-[a-z0-9-]+\Z")]


class PeftSettings(TypedDict, total=False):
    """adapter_config.json."""

    task_type: Text
    base_model_name_or_path: Text
    target_modules: Annotated[
        str | list[FilledName] | None, Meta(description="neither text nor a list of names")
    ]
    target_parameters: Names
    modules_to_save: Names
    rank_pattern: ByName  # AdaLoRA's lists which triplets are left
    alpha_pattern: ByName
    auto_mapping: ByName
    use_rslora: Switch
    use_dora: Switch
    ensure_weight_tying: Switch
    lora_bias: Switch
    bias: Text
    init_lora_weights: Annotated[bool | str | None, Meta(description="no initialization")]
    trainable_token_indices: Annotated[
        list[int] | dict[str, list[int]] | None, Meta(description="no list of tokens")
    ]


class NativeSettings(TypedDict, total=False):
    """lora_lab_adapter.json."""

    method: Annotated[str, Meta(max_length=256, description="no name")]
    parts: Annotated[list[Part], Meta(min_length=1, description="no list of parts")]
    config: Annotated[dict[str, Any] | None, Meta(description="no config")]
