__version__: str

from . import paper as paper
from .advice.api import advise as advise
from .advice.layers import which_layers as which_layers
from .analysis.live import analyze as analyze
from .anatomy.api import anatomy as anatomy
from .budget.dry_run import dry_run as dry_run
from .budget.forecast import budget as budget
from .captions.glossary import glossary as glossary
from .checkpoint.card import push_ready as push_ready
from .checkpoint.loading import load_adapter as load_adapter
from .checkpoint.loralib_models import load_loralib as load_loralib
from .checkpoint.loralib_models import save_loralib as save_loralib
from .checkpoint.merged import export_merged as export_merged
from .checkpoint.saving import save_adapter as save_adapter
from .checkpoint.uniform import export_uniform as export_uniform
from .errors import LoraLabError as LoraLabError
from .methods.adalora.config import AdaLoraConfig as AdaLoraConfig
from .methods.api import (
    attach as attach,
)
from .methods.api import (
    detach as detach,
)
from .methods.api import (
    merge as merge,
)
from .methods.api import (
    merge_and_unload as merge_and_unload,
)
from .methods.api import (
    unmerge as unmerge,
)
from .methods.attached import (
    activate as activate,
)
from .methods.attached import (
    active as active,
)
from .methods.attached import (
    attached as attached,
)
from .methods.bottleneck.config import BottleneckConfig as BottleneckConfig
from .methods.full.config import BitFitConfig as BitFitConfig
from .methods.full.config import FullConfig as FullConfig
from .methods.head.config import HeadConfig as HeadConfig
from .methods.ia3.config import IA3Config as IA3Config
from .methods.lora.backward_passes import twice_differentiable as twice_differentiable
from .methods.lora.combine import combine as combine
from .methods.lora.config import LoraConfig as LoraConfig
from .methods.lora.corda import CordaConfig as CordaConfig
from .methods.lora.eva import EvaConfig as EvaConfig
from .methods.lora.mixed_batch import mixed_batch as mixed_batch
from .methods.lora.peft_fields import TaskType as TaskType
from .methods.oft.config import OFTConfig as OFTConfig
from .methods.prompt_tuning.config import (
    PrefixEmbedConfig as PrefixEmbedConfig,
)
from .methods.prompt_tuning.config import (
    PrefixLayerConfig as PrefixLayerConfig,
)
from .models.load import (
    LoadedModel as LoadedModel,
)
from .models.load import (
    catalogue as catalogue,
)
from .models.load import (
    load_model as load_model,
)
from .runs.training_config import TrainingConfig as TrainingConfig
from .sweeps.api import sweep as sweep
from .sweeps.asha import AshaConfig as AshaConfig
from .sweeps.comparison import compare as compare
from .tasks.load import load_task as load_task
from .training.api import train as train
from .training.evaluate import evaluate as evaluate
from .training.resume import list_runs as list_runs
from .training.resume import resume as resume
from .training.resume import runs as runs
from .training.run import Run as Run
