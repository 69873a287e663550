"""What Hu et al. (2022) published, as data, and whether it comes out when it is counted again.

`TABLES` holds every row that prints a number of parameters and tells enough to count it;
`row.count` counts it on the model, `row.verdict` compares. `claims(model)` does the same for the
numbers of the running text. `list_table`, `list_claims` and `list_amplification` show them.
"""

from lora_lab._util.tables import Table
from lora_lab.paper.claims import Claim, claims
from lora_lab.paper.listing import list_amplification, list_claims, list_table
from lora_lab.paper.rows import PublishedRow, Verdict, published_rows
from lora_lab.paper.tables import TABLE_7, TABLES, AmplificationRow

__all__ = [
    "TABLES",
    "TABLE_7",
    "AmplificationRow",
    "Claim",
    "PublishedRow",
    "Table",
    "Verdict",
    "claims",
    "list_amplification",
    "list_claims",
    "list_table",
    "published_rows",
]
