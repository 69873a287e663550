"""Calls that Ctrl-C ends at any place that it can come to."""

from __future__ import annotations

import dis
import sys
import threading
from collections.abc import Callable
from types import FrameType, ModuleType
from typing import Any

from lora_lab.training import control, threads, visits

# Where CPython looks for signals: as a function begins, after a call, and as a loop goes round
# (Python/ceval.c, CHECK_EVAL_BREAKER).
LOOKED_FOR = ("RESUME", "CALL", "CALL_FUNCTION_EX", "CALL_KW", "JUMP_BACKWARD")


def cut(act: Callable[[], object], place: int, *modules: ModuleType) -> bool:
    """Call `act`, interrupted at a place that signals can come to; whether it came so far.

    Args:
        act: called on this thread.
        place: which of the places, from 0.
        modules: whose code is interrupted, beside that of steering.
    """
    files = {each.__file__ for each in (control, visits, threads, threading, *modules)}
    seen = 0
    before_it: dict[FrameType, str] = {}  # the instruction that a frame executed last

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal seen
        if frame.f_code.co_filename not in files:
            return None  # a finalizer's, too: what is raised there goes no further
        frame.f_trace_opcodes = True
        if event == "opcode":
            if before_it.get(frame) in LOOKED_FOR:
                if seen == place:
                    sys.settrace(None)
                    raise KeyboardInterrupt
                seen += 1
            before_it[frame] = dis.opname[frame.f_code.co_code[frame.f_lasti]]
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    except (KeyboardInterrupt, RuntimeError):  # Python's own Condition says "release unlocked lock"
        return True
    finally:
        sys.settrace(before)
    return False
