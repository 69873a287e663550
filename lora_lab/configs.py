"""The dataclasses that users fill in. Field names are PEFT's where PEFT has them."""

from lora_lab.methods.adalora.config import AdaLoraConfig
from lora_lab.methods.bottleneck.config import BottleneckConfig
from lora_lab.methods.combined import CombinedConfig, method_name, to_python
from lora_lab.methods.config import Config, MethodConfig
from lora_lab.methods.full.config import BitFitConfig, FullConfig
from lora_lab.methods.head.config import HeadConfig
from lora_lab.methods.ia3.config import IA3Config
from lora_lab.methods.lora.config import LoraConfig
from lora_lab.methods.lora.corda import CordaConfig
from lora_lab.methods.lora.eva import EvaConfig
from lora_lab.methods.oft.config import OFTConfig
from lora_lab.methods.prompt_tuning.config import PrefixEmbedConfig, PrefixLayerConfig
from lora_lab.runs.training_config import TrainingConfig

__all__ = [
    "AdaLoraConfig",
    "BitFitConfig",
    "BottleneckConfig",
    "CombinedConfig",
    "Config",
    "CordaConfig",
    "EvaConfig",
    "FullConfig",
    "HeadConfig",
    "IA3Config",
    "LoraConfig",
    "MethodConfig",
    "OFTConfig",
    "PrefixEmbedConfig",
    "PrefixLayerConfig",
    "TrainingConfig",
    "method_name",
    "to_python",
]
