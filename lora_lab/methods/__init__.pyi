from .adalora.adapter import AdaLoraAdapter as AdaLoraAdapter
from .api import (
    attach as attach,
)
from .api import (
    detach as detach,
)
from .api import (
    merge as merge,
)
from .api import (
    merge_and_unload as merge_and_unload,
)
from .api import (
    unmerge as unmerge,
)
from .attached import (
    activate as activate,
)
from .attached import (
    active as active,
)
from .attached import (
    attached as attached,
)
from .base import Adapter as Adapter
from .bottleneck.adapter import BottleneckAdapter as BottleneckAdapter
from .combination import Combination as Combination
from .full.adapter import FullAdapter as FullAdapter
from .head.adapter import HeadAdapter as HeadAdapter
from .lora.adapter import LoraAdapter as LoraAdapter
from .lora.combine import combine as combine
from .lora.factors import LoraSite as LoraSite
from .lora.mixed_batch import mixed_batch as mixed_batch
from .prompt_tuning.adapter import (
    PrefixEmbedAdapter as PrefixEmbedAdapter,
)
from .prompt_tuning.adapter import (
    PrefixLayerAdapter as PrefixLayerAdapter,
)
from .prompt_tuning.adapter import (
    learned_tokens as learned_tokens,
)
