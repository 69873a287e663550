"""GEM's rows (Gehrmann et al., 2021, arXiv:2102.01672): a target to learn, and references."""

from __future__ import annotations

from dataclasses import replace

from lora_lab.tasks.forms import Form, FormReader
from lora_lab.tasks.prompts import Row
from lora_lab.tasks.table import Table


class GemReader(FormReader):
    """Reads GEM's rows: `references` are right where there are some, or else `target` is.

    Rows to train on have the target alone, and a row each; those that are held out have all of
    their references, and the first one as the target.
    """

    def __init__(self, form: Form, template: str | None) -> None:
        super().__init__(form, template)
        self.columns = (*self.columns, "target")

    def rows(self, table: Table) -> list[Row]:
        """Return each pair of an input and a text that is right of it once."""
        targets, several = table.texts("target"), table["references"]
        right = [
            self._nested(table, "references", number, texts) or [target]
            for number, (texts, target) in enumerate(zip(several, targets, strict=True), 1)
        ]
        read = replace(table, columns={**table.columns, "references": right})
        return list(dict.fromkeys(super().rows(read)))
