"""What Hu et al. (2022) published, as data, and whether it comes out when it is counted again.

`TABLES` holds every row that prints a number of parameters and tells enough to count it;
`row.count` counts it on the model, `row.verdict` compares. `claims(model)` does the same for the
numbers of the running text. `list_table`, `list_claims` and `list_amplification` show them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
