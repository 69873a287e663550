"""The dataclasses that users fill in. Field names are PEFT's where PEFT has them."""

from lora_lab.configs.adalora import AdaLoraConfig
from lora_lab.configs.base import Config
from lora_lab.configs.bottleneck import BottleneckConfig
from lora_lab.configs.head import HeadConfig
from lora_lab.configs.inplace import BitFitConfig, FullConfig
from lora_lab.configs.lora import LoraConfig
from lora_lab.configs.naming import method_name, to_python
from lora_lab.configs.prefix import PrefixEmbedConfig, PrefixLayerConfig
from lora_lab.configs.training import TrainingConfig

MethodConfig = (
    LoraConfig
    | AdaLoraConfig
    | FullConfig
    | BitFitConfig
    | PrefixEmbedConfig
    | PrefixLayerConfig
    | BottleneckConfig
    | HeadConfig
)

__all__ = [
    "AdaLoraConfig",
    "BitFitConfig",
    "BottleneckConfig",
    "Config",
    "FullConfig",
    "HeadConfig",
    "LoraConfig",
    "MethodConfig",
    "PrefixEmbedConfig",
    "PrefixLayerConfig",
    "TrainingConfig",
    "method_name",
    "to_python",
]
