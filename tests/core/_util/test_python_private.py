"""Python's private names: what a process does at its end, what a regular expression is made of."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from lora_lab._util import python_private

ROOT = Path(__file__).parents[3]


def test_a_hook_at_the_end_of_main_may_still_use_threads_and_pools_and_fail() -> None:
    code = """
import atexit, threading
from concurrent.futures import ThreadPoolExecutor
from lora_lab._util import python_private

def hook():
    started = threading.Thread(target=print, args=("thread",))
    started.start(); started.join()
    print(pool.submit(lambda: "pool").result(), flush=True)
    python_private.end_with_failure()

python_private.when_main_ends(hook)
atexit.register(print, "atexit")
pool = ThreadPoolExecutor()
pool.submit(int).result()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout.split(), done.stderr) == (["thread", "pool", "atexit"], "")
    assert done.returncode == 120


def test_a_process_may_end_while_a_thread_of_gloo_waits_to_let_go_of_a_tensor(tmp_path) -> None:
    code = """
import sys, time
import torch
from torch import distributed
from lora_lab._util import python_private

distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
kept = distributed.group.WORLD  # as FSDP's mesh keeps it, so that its threads live on
sys.setswitchinterval(1000)  # this thread keeps the interpreter: ended as usual, half abort here
tensors = [torch.ones(1_000_000) for _ in range(20)]
for tensor in tensors:
    tensor.known = True  # to Python, which the thread that has the last of it then has to tell
del tensor
while tensors:
    distributed.all_reduce(tensors.pop(), async_op=True)
until = time.monotonic() + 0.3
while time.monotonic() < until:
    pass
distributed.destroy_process_group()
python_private.end_without_finalizing(3)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "meeting")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (3, "")


def test_a_process_that_is_not_taken_apart_has_waited_for_its_threads_and_called_its_hooks() -> (
    None
):
    code = """
import atexit, threading, time
from lora_lab._util import python_private

class Kept:
    def __del__(self):
        print("taken apart")

kept = Kept()
go = threading.Event()
threading.Thread(target=lambda: (go.wait(), print("thread"))).start()
atexit.register(print, "atexit")
go.set()
python_private.end_without_finalizing(3)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout.split(), done.stderr) == (3, ["thread", "atexit"], "")


def test_what_re_parses_is_a_list_of_operations_that_can_be_matched_alone() -> None:
    tree = python_private.parsed_pattern("(?i:é)[a-c]")
    (group, (_, more, fewer, inner)), (op, argument) = tree
    assert [group.name, op.name] == ["SUBPATTERN", "IN"]
    flags = python_private.combined_flags(0, more, fewer)
    assert flags == re.IGNORECASE
    ignoring = python_private.one_character(inner, *inner[0], flags)
    assert [bool(ignoring(c)) for c in "éÉe"] == [True, True, False]
    within = python_private.one_character(tree, op, argument, 0)
    assert [bool(within(c)) for c in "acdA"] == [True, True, False, False]
