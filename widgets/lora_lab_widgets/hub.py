"""An adapter on its way to the Hugging Face hub, when somebody presses the button."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from lora_lab._util.files import write_text_atomic
from lora_lab._util.hub import hub_host
from lora_lab._util.quiet import first_line
from lora_lab.checkpoint.files import CONFIG_FILE
from lora_lab.errors import ConfigError, LoraLabError, RunError, as_cause
from lora_lab.models.places import HUB_ID
from lora_lab_widgets.keeping import Say, Written, write

if TYPE_CHECKING:
    from lora_lab_widgets.kept import Kept
    from lora_lab_widgets.session import Session

NOT_LOGGED_IN = (
    "not logged in to the hub: run `hf auth login` in a terminal, or set HF_TOKEN, and press "
    "“Look again”"
)


class AskFirstError(Exception):
    """What is asked before something is done; the text is the question."""


def cannot_push() -> str:
    """Return why nothing can be pushed from here; "" where a token is there. Asks no server."""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set: the hub is not reached from this kernel"
    return "" if get_token() else NOT_LOGGED_IN


def check_repo(typed: object) -> str:
    """Return the repository that somebody typed.

    Raises:
        ConfigError: that is no name of one.
    """
    repo = str(typed or "").strip()
    if not HUB_ID.fullmatch(repo) or repo.count("/") != 1:
        raise ConfigError("type the repository as owner/name, such as me/my-adapter")
    return repo


def push(
    session: Session, kept: Kept, repo: str, *, private: bool, sure: bool, say: Say
) -> tuple[str, Written]:
    """Push an adapter with its card; return the address, and what was written and read back.

    Args:
        session, kept, say: as `write` takes them.
        repo: owner/name.
        private: of a repository that is made now.
        sure: push into one that is there already.

    Raises:
        AskFirstError: it is there already, and nobody said that this is meant.
        RunError: the hub refuses it, or is not reached.
        LoraLabError: as `write`.
    """
    from huggingface_hub import HfApi

    if why := cannot_push():
        raise RunError(why)
    api = HfApi()
    with tempfile.TemporaryDirectory(prefix="lora-lab-") as scratch:
        try:
            say(f"asking {hub_host()}…")
            is_there = api.repo_exists(repo)
            if is_there and not sure:
                raise AskFirstError(
                    f"{repo} is on the hub already. Push into it? It stays private or public, as "
                    "it is; its files of the same names are replaced, and its history keeps them."
                )
            written = write(session, kept, "peft", Path(scratch) / "adapter", say)
            if base := _without_path(Path(scratch) / "adapter", session.lm.card.hub_id):
                written = dataclasses.replace(written, notes=(*written.notes, base))
            say(f"pushing to {repo}…")
            if not is_there:
                api.create_repo(repo, private=private)
            done = api.upload_folder(
                repo_id=repo,
                folder_path=Path(scratch) / "adapter",
                commit_message=f"Adapter of {kept.id or 'LoRA Lab'}",
            )
        except (AskFirstError, LoraLabError):
            raise
        except Exception as error:  # the hub's refusals, and all that a transport may raise
            raise RunError(f"{repo} could not be pushed: {first_line(error)}") from as_cause(error)
    return str(done), written


def _without_path(folder: Path, hub_id: str | None) -> str:
    """Take a folder of this machine out of what is pushed; return what to say, "" of nothing.

    `adapter_config.json` names the base, as PEFT's does, by where it was loaded from.
    """
    file = folder / CONFIG_FILE
    settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    base = settings.get("base_model_name_or_path")
    if base is None or base == hub_id or (HUB_ID.fullmatch(base) and not Path(base).exists()):
        return ""
    settings["base_model_name_or_path"] = hub_id
    write_text_atomic(file, json.dumps(settings, indent=2))
    instead = hub_id or "none: PEFT has to be given it"
    return f"the base's folder here is not pushed; {CONFIG_FILE} names as the base {instead}"
