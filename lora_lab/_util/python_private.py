"""What Python does not say in public: each private name that is used, in one function.

Seen on Python 3.11 to 3.14. `tests/core/_util/test_private_names.py` fails first after an upgrade.
"""

from __future__ import annotations

import concurrent.futures.thread  # registers its own hook first, so that ours runs before it
import threading
from collections.abc import Callable

assert concurrent.futures.thread is not None


def when_main_ends(hook: Callable[[], None]) -> None:
    """Call a hook when the main thread is done, before pools of threads are shut down.

    At `atexit` it would be too late: libraries that a run needs, such as trackers, have closed by
    then.
    """
    threading._register_atexit(hook)  # type: ignore[attr-defined]
