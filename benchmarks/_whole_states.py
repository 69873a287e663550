"""What a reloaded page waits for: all widgets' states, in one message."""

from __future__ import annotations

import statistics
import time
import uuid
from typing import Any

import numpy as np

from benchmarks._measure import Row

REACH_MS = 1000.0  # the page's libraries give a widget two seconds


def whole_states(client: Any, times: int) -> tuple[list[float], int]:
    """Ask a kernel as a reloaded page does.

    Args:
        client: of a session of its own.

    Returns:
        After how many ms the states of all widgets were there, each time, and their bytes.
    """
    took, size = [], 0
    for _ in range(times):
        comm = {"comm_id": uuid.uuid4().hex}
        opening = {**comm, "target_name": "jupyter.widget.control", "data": {}}
        version = {"version": "1.0.0"}
        start = time.perf_counter()
        client.shell_channel.send(client.session.msg("comm_open", opening, metadata=version))
        asking = {**comm, "data": {"method": "request_states"}}
        client.shell_channel.send(client.session.msg("comm_msg", asking))
        while True:
            _, parts = client.session.feed_identities(
                client.iopub_channel.socket.recv_multipart(), copy=True
            )
            message = client.session.deserialize(parts)
            if message["content"].get("comm_id") == comm["comm_id"]:
                size = sum(len(part) for part in parts)
                took.append((time.perf_counter() - start) * 1e3)
                break
        time.sleep(0.5)
    client.stop_channels()
    return took, size


def row_of_states(training: list[float], size: int, resting: list[float]) -> Row:
    """Return the table's line on what a reloaded page waits for."""
    p95 = float(np.percentile(training, 95))
    return Row(
        "the states of all widgets while training, which a reloaded page waits for",
        f"p95 {p95:.0f} ms",
        f"p95 < {REACH_MS:.0f} ms",
        p95 < REACH_MS,
        f"median {statistics.median(training):.0f}, slowest {max(training):.0f} ms; "
        f"at rest median {statistics.median(resting):.0f} ms; {size / 1024:.0f} KB",
    )
