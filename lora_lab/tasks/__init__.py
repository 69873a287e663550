"""Data sets with their metrics: `load_task` finds one by name, file or hub id."""

from __future__ import annotations

import difflib
from pathlib import Path

from lora_lab.errors import TaskError
from lora_lab.tasks.base import Example, Task

__all__ = ["Example", "Task", "load_task"]

EMBEDDED = ("mini-e2e",)


def load_task(
    name: str | Path,
    *,
    prompt: str | None = None,
    completion: str | None = None,
    validation: str | Path | None = None,
    test: str | Path | None = None,
    seed: int = 0,
) -> Task:
    """Load a task.

    Args:
        name: "mini-e2e" (made here, no file needed); a file (.csv, .tsv, .jsonl, .json, .parquet,
            also with .gz where it is text); or a data set's hub id, "owner/name".
        prompt: the column that the model reads.
        completion: the column that it learns to write.
        validation: a file of held-out rows. Without one, whole prompts are held out of the
            training rows.
        test: a file of rows that are kept for the end.
        seed: of what mini-e2e makes, or of the held-out split.

    Raises:
        TaskError: nothing of that name, a file that cannot be read, a column that is not there.
    """
    if str(name) in EMBEDDED:
        _refuse_file_options(
            str(name), prompt=prompt, completion=completion, validation=validation, test=test
        )
        from lora_lab.tasks.mini import mini_e2e

        return mini_e2e(seed)
    from lora_lab.tasks.local import FORMATS, columns_asked_for, from_files, from_hub, is_file_name

    if is_file_name(str(name)):
        columns = columns_asked_for(name, prompt, completion)
        return from_files(Path(name), columns, validation, test, seed)
    if str(name).count("/") == 1 and not str(name).startswith((".", "/", "~")):
        columns = columns_asked_for(name, prompt, completion)
        _refuse_file_options(str(name), validation=validation, test=test)
        return from_hub(str(name), columns, seed)
    near = difflib.get_close_matches(str(name).lower(), EMBEDDED, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(EMBEDDED)}"
    raise TaskError(
        f"no task is called {str(name)!r}; {hint} (or give a {', '.join(FORMATS)} file, or a "
        "hub id of the form owner/name)"
    )


def _refuse_file_options(name: str, **options: object) -> None:
    given = [option for option, value in options.items() if value is not None]
    if given:
        raise TaskError(
            f"{name} brings its own parts; leave out {' and '.join(given)}, or give a file as the "
            "first argument"
        )
