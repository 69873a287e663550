from .api import anatomy as anatomy
from .api import output_embedding as output_embedding
from .blocks import (
    Block as Block,
)
from .blocks import (
    Row as Row,
)
from .types import (
    Anatomy as Anatomy,
)
from .types import (
    ModelShape as ModelShape,
)
from .types import (
    Rows as Rows,
)
from .types import (
    Site as Site,
)
from .types import (
    Weight as Weight,
)
