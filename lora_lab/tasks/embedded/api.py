"""Finds the tasks that are made here: every module beside this one registers its own."""

from __future__ import annotations

from lora_lab._util.modules import import_modules
from lora_lab.tasks import embedded
from lora_lab.tasks.embedded.registry import EMBEDDED as EMBEDDED

import_modules(embedded)
