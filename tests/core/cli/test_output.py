"""What a command prints steers no terminal; what draws its bars still does."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys

import pytest
from rich.progress import Progress

import lora_lab as ll
from lora_lab.cli import main
from lora_lab.cli.output import console, steady_output
from tests.core.test_errors import HOSTILE, steers
from tests.helpers.tiny_models import tiny


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_what_is_printed_warned_or_logged_steers_no_terminal() -> None:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), steady_output():
        print(HOSTILE)
        logging.StreamHandler(sys.stderr).emit(logging.makeLogRecord({"msg": HOSTILE}))
        sys.stderr.write(f"\r{HOSTILE}")
    assert "owned" in out.getvalue()
    assert err.getvalue().count("owned") == 2
    assert not steers(out.getvalue())
    assert steers(err.getvalue()) == ["\r"]  # tqdm's, at the start of what it writes


def test_bars_move_the_cursor_and_what_stands_in_them_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    err = Terminal()
    with contextlib.redirect_stderr(err), steady_output():
        shown = console(stderr=True, markup=False, highlight=False)
        with Progress(console=shown) as progress:
            progress.add_task("loading", total=2)
            shown.print(HOSTILE.replace("\x1b[2J", ""))
    drawn = err.getvalue()
    assert "\x1b[?25l" in drawn
    assert "\x1b[2K" in drawn
    assert "\x1b]0;" not in drawn
    assert "\x07" not in drawn
    assert "\u202e" not in drawn


def test_a_folder_and_a_file_with_such_names_are_said_in_clean_lines(
    tmp_path, capfd: pytest.CaptureFixture[str]
) -> None:
    hostile = tmp_path / "x\x1b]0;owned\x07\u202ey"
    hostile.mkdir()
    assert main(["inspect", str(hostile)]) == 2
    model = tiny("llama")
    ll.attach(model, ll.LoraConfig(r=2, init_lora_weights=False))
    ll.save_adapter(model, hostile)
    config = hostile / "adapter_config.json"
    settings = json.loads(config.read_text())
    config.write_text(json.dumps(settings | {"base_model_name_or_path": HOSTILE}))
    assert main(["inspect", str(hostile)]) in (0, 2)
    assert main(["train", str(hostile / "run.yaml")]) == 2
    assert main(["budget", HOSTILE[:-2]]) == 2
    said = "".join(capfd.readouterr())
    assert "owned" in said
    assert not steers(said)


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_what_a_command_says_has_no_secret_in_it(
    options, tmp_path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_PASSWORD", "pa55-word")
    model = tiny("llama")
    ll.attach(model, ll.LoraConfig(r=2, init_lora_weights=False))
    folder = ll.save_adapter(model, tmp_path / "pa55-word")
    assert main(["inspect", str(folder), *options]) == 0
    assert main(["inspect", f"https://me:{'x' * 9}@host/adapter", *options]) == 2
    said = "".join(capfd.readouterr())
    assert "[redacted]" in said
    assert "pa55-word" not in said
    assert "x" * 9 not in said


def test_nor_has_what_its_parser_says_or_a_library_warns(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_PASSWORD", "pa55-word")
    with pytest.raises(SystemExit):
        main(["inspect", "x", "--alpha", "pa55-word"])
    with steady_output():
        print("GET https://h/x?token=abcdef123456", file=sys.stderr)
        console(markup=False).print("on pa55-word", style="bold")
    said = "".join(capfd.readouterr())
    assert said.count("[redacted]") == 3
    assert "pa55-word" not in said
    assert "abcdef" not in said


def test_a_number_that_is_somebodys_password_is_a_number_in_json(
    tmp_path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIN_PASSWORD", "33333333")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    (tmp_path / "run" / "summary.json").write_text('{"state": "done", "steps": 33333333}')
    assert main(["runs", str(tmp_path), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["runs"][0]["steps"] == 33333333
