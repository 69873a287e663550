"""What Python does not say in public: each private name that is used, in one function.

Seen on Python 3.11 to 3.14. `tests/core/_util/test_private_names.py` fails first after an upgrade.
"""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # registers its own hook first, so that ours runs before it
import contextlib
import importlib
import os
import re
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn, cast

assert concurrent.futures.thread is not None

# What `re` parses patterns with; its tree has been the same since 3.11.
_re_parser: Any = importlib.import_module("re._parser")
_re_compiler: Any = importlib.import_module("re._compiler")


def when_main_ends(hook: Callable[[], None]) -> None:
    """Call a hook when the main thread is done, before pools of threads are shut down.

    At `atexit` it would be too late: libraries that a run needs, such as trackers, have closed by
    then.
    """
    threading._register_atexit(hook)  # type: ignore[attr-defined]


def end_with_failure() -> None:
    """Have this process end with status 120, after all that it does when it ends.

    It is then past the point where `sys.exit` is heard. Python ends so where the last flush of a
    standard stream fails (documented at `sys.exit`), of stderr without a word (`flush_std_files`).
    """
    stream = sys.stderr or open(os.devnull, "w")  # noqa: SIM115  # open to the very end
    sys.stderr = cast(Any, _LastFlushFails(stream))


def end_without_finalizing(status: int) -> NoReturn:
    """End this process as Python does, but take the interpreter apart no more.

    gloo's threads outlive `destroy_process_group` where a mesh still knows the group. One of them
    that lets go of a Python tensor while the interpreter is taken apart ends the process with
    SIGABRT, "terminate called without an active exception" (pytorch/pytorch#190489).
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or none
            stream.flush()
    os._exit(status)


class _LastFlushFails:
    """A stream as it is, until the interpreter's own end."""

    closed = False

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def flush(self) -> None:
        """Flush the stream; fail once all hooks of the process's end have been called."""
        with contextlib.suppress(OSError, ValueError):  # nobody may listen any more
            self._stream.flush()
        if sys.is_finalizing():
            raise OSError("a run has failed")


def parsed_pattern(pattern: str) -> Any:
    """Return the operations of a regular expression, as `re` itself parses it.

    Raises:
        re.error: it is none.
    """
    return _re_parser.parse(pattern)


def one_character(
    tree: Any, op: Any, argument: Any, flags: int
) -> Callable[[str], re.Match[str] | None]:
    """Return what matches one operation of such a tree, which takes one character."""
    alone = _re_parser.SubPattern(tree.state, [(op, argument)])
    matches: Any = _re_compiler.compile(alone, flags).match
    return cast("Callable[[str], re.Match[str] | None]", matches)


def combined_flags(flags: int, more: int, fewer: int) -> int:
    """Return the flags within a group such as `(?i-s:…)` (`re._compiler._combine_flags`)."""
    return int(_re_compiler._combine_flags(flags, more, fewer))
