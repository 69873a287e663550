from .api import anatomy as anatomy
from .api import output_embedding as output_embedding
from .types import (
    Anatomy as Anatomy,
)
from .types import (
    ModelShape as ModelShape,
)
from .types import (
    Row as Row,
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
