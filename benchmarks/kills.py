"""Runs killed at random instants, over all methods: `python -m benchmarks.kills --kills 500`.

SIGKILL while a run starts, evaluates, steps, writes a checkpoint or resumes. What goes on is held
to the same run left alone: every loss, the adapter and the files, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.helpers import killed_runs

_SAME = "losses", "adapter", "metrics", "logged", "saved"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table; end with status 1 where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    parser.add_argument("--beside", type=int, default=2, help="cases that run at once")
    options = parser.parse_args(arguments)
    killed_runs.prepare()
    with tempfile.TemporaryDirectory() as folder:
        names = list(killed_runs.METHODS)
        alone = {name: killed_runs.alone(Path(folder) / f"alone-{name}", name) for name in names}
        cases = _cases(Path(folder), options.kills, options.seed, options.beside)
        wrong = [line for case in cases for line in differences(case, alone[case["method"]])]
    print(table(cases))
    print(f"{sum(map(_kills, cases))} kills, {len(wrong)} differ")
    for line in wrong:
        print(line)
    raise SystemExit(bool(wrong))


def differences(case: dict[str, Any], alone: dict[str, Any]) -> list[str]:
    """Return a line for each thing that a killed run has otherwise than the one left alone."""
    if "problem" in case:
        return [f"{case['method']}, seed {case['seed']}: {case['problem']}"]
    keys = [key for key in _SAME if key in case and case[key] != alone[key]]
    keys += ["leftovers"] if case["leftovers"] else []
    return [f"{case['method']}, seed {case['seed']}, {case['kinds']}: {key}" for key in keys]


def table(cases: Sequence[dict[str, Any]]) -> str:
    """Return what was killed, where, and from where it went on, by method."""
    columns = ["method", "kills", "start under way", "no checkpoint yet", "behind one", "resuming"]
    lines = ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
    for name in [*killed_runs.METHODS, "all"]:
        own = [case for case in cases if name in (case["method"], "all")]
        stood: Counter[str] = Counter()
        for case in own:
            for at, (signal, (state, step)) in enumerate(
                zip(case.get("signals", ()), case.get("stood", ()), strict=True)
            ):
                if signal:
                    stood["absent" if state == "absent" else "behind" if step else "before"] += 1
                    stood["resumed"] += at > 0
        counts = [stood[key] for key in ("absent", "before", "behind", "resumed")]
        lines.append(f"| {name} | {sum(map(_kills, own))} | {' | '.join(map(str, counts))} |")
    return "\n".join(lines)


def _kills(case: dict[str, Any]) -> int:
    return sum(bool(signal) for signal in case.get("signals", ()))


def _cases(folder: Path, kills: int, seed: int, beside: int) -> list[dict[str, Any]]:
    """Kill until there are so many; each case is a child, which forks the runs."""
    names, found = list(killed_runs.METHODS), []
    waiting: dict[int, tuple[int, Path]] = {}
    while sum(map(_kills, found)) < kills or waiting:
        if len(waiting) < beside and sum(map(_kills, found)) + len(waiting) < kills:
            answer = folder / f"case-{seed}.json"
            child = os.fork()
            if child == 0:
                _case(folder / f"seed-{seed}", seed, names[seed % len(names)], answer)
            waiting[child] = seed, answer
            seed += 1
            continue
        ended, _ = os.wait()
        of, answer = waiting.pop(ended)
        case = json.loads(answer.read_text())
        found.append({"seed": of, "method": names[of % len(names)], **case})
    return found


def _case(folder: Path, seed: int, method: str, answer: Path) -> None:
    """Write what one case came to; never returns."""
    try:
        case = killed_runs.killed(folder, seed, method)
    except BaseException as error:
        case = {"problem": f"{type(error).__name__}: {error}"}
    answer.write_text(json.dumps(case))
    os._exit(0)


if __name__ == "__main__":
    main()
