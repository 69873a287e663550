"""`python -m lora_lab.cli`, where the `lora-lab` script is not on the path."""

import sys

from lora_lab.cli import main

sys.exit(main())
