from .adalora.adapter import AdaLoraAdapter as AdaLoraAdapter
from .api import (
    activate as activate,
)
from .api import (
    active as active,
)
from .api import (
    attach as attach,
)
from .api import (
    attached as attached,
)
from .api import (
    detach as detach,
)
from .api import (
    merge as merge,
)
from .api import (
    unmerge as unmerge,
)
from .base import Adapter as Adapter
from .bottleneck.adapter import BottleneckAdapter as BottleneckAdapter
from .combination import Combination as Combination
from .full.adapter import InPlaceAdapter as InPlaceAdapter
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
