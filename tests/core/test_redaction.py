"""Tokens in an error's text: not in a run's files, its Snapshot, or what a notebook shows."""

from __future__ import annotations

import ast
import dataclasses
import json
import traceback
from html import escape
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import torch

from lora_lab import errors
from lora_lab._util.warn import warn
from lora_lab.anatomy.api import anatomy
from lora_lab.budget.forecast import budget
from lora_lab.errors import RunError
from lora_lab.figures._base import Figure
from lora_lab.redaction import redacted, redacted_values
from lora_lab.reports.run_page import write_run_report
from lora_lab.tasks import Example, GenerationTask, load_task, tables
from lora_lab.tasks.chats import ChatTask
from lora_lab.tasks.classification import ClassificationTask
from lora_lab.training import checks, failures
from lora_lab.training import run as run_module
from lora_lab.training.api import train
from lora_lab.training.snapshot import RunState
from tests.helpers.tiny_run import CONFIG, tiny_lm, tiny_task

ROOT = Path(__file__).parents[2]
LETTERS = "aB3dE5gH7jK9mN1pQ3sT5vW7yZ9bC1dF3hJ5"
HEX = "0123456789abcdef0123456789abcdef01234567"  # as W&B's keys and git's commits look
SAID = {
    "a Hugging Face token": f"401 for hf_{LETTERS}",
    "a W&B key": f"WANDB_API_KEY={HEX} is no good",
    "a W&B key of the new kind": f"wandb_v1_{LETTERS}",
    "a header": f"Authorization: Bearer {LETTERS}",
    "a dict of headers": repr({"Authorization": f"Basic {LETTERS}", "Accept": "text/plain"}),
    "headers in JSON in JSON": json.dumps(json.dumps({"authorization": LETTERS})),
    "a bearer": f"sent bearer {LETTERS}",
    "a GitHub token of the new kind": f"github_pat_11AB_{LETTERS}",
    "a server's GitHub token": f"ghs_{LETTERS}",
    "a token of an OAuth login": f"hf_oauth_{LETTERS}.ey",
    "a URL's token": f"GET https://h/x.csv?a=1&access_token={LETTERS} 404",
    "a signed URL": f"https://b.s3/x?X-Amz-Date=1&X-Amz-Signature={LETTERS}",
    "a token for a user's name": f"https://{LETTERS}@git.example/x",
    "an argument": f"Client(api_key='{LETTERS}', tries=3)",
    "a connection's password": f"postgres host=h password={LETTERS} port=1",
    "a dict of settings": repr({"secret": LETTERS, "n": 1}),
    "a key in a header's line": f"> X-Api-Key: {LETTERS}",
    "what a browser sends": f"Cookie: session={LETTERS}",
    "a storage's connection": f"AccountName=me;AccountKey={LETTERS}==;EndpointSuffix=x",
    "a proxy's password": f"cannot reach https://me:{LETTERS}@proxy.example:80/simple",
}
# The forms that the makers' own pages give; the parts are made up, and the text is joined here so
# that no scanner of repositories takes them for real.
FORMS = {
    "Hugging Face's JWT": f"hf_jwt_eyJ{LETTERS}.eyJ{LETTERS}.{LETTERS}",
    "an organization's": f"api_org_{LETTERS}",
    "ModelScope": "ms-" + "0123abcd-0123-4567-89ab-0123456789ab",
    "Kaggle": "KGAT_" + HEX[:32],
    "OpenAI": f"sk-proj-{LETTERS}",
    "Anthropic": f"sk-ant-api03-{LETTERS}",
    "OpenRouter": f"sk-or-v1-{LETTERS}",
    "Cerebras": "csk-" + HEX,
    "Groq": f"gsk_{LETTERS}{LETTERS}",
    "xAI": f"xai-{LETTERS}{LETTERS}",
    "Perplexity": f"pplx-{LETTERS}{LETTERS}",
    "LangSmith": f"lsv2_pt_{HEX}_0123456789",
    "GitLab's runner": f"glrt-{LETTERS}",
    "npm": "npm_" + LETTERS,
    "PyPI": f"pypi-AgEIcHlwaS5vcmc{LETTERS}{LETTERS}",
    "Docker": f"dckr_pat_{LETTERS}",
    "AWS's key's name": "AKIA" + "IOSFODNN7EXAMPLE",
    "AWS's temporary one": "ASIA" + "IOSFODNN7EXAMPLE",
    "Google's client": f"GOCSPX-{LETTERS[:28]}",
    "Google's access": f"ya29.{LETTERS}",
    "Azure's client": "abc8Q~" + LETTERS[:34],
    "Databricks": "dapi" + HEX[:32] + "-2",
    "DigitalOcean": "dop_v1_" + HEX + HEX[:24],
    "Vault": f"hvs.{LETTERS}",
    "Slack's app": f"xapp-1-A0123-{LETTERS}",
    "Stripe": "sk_live_" + LETTERS,
    "SendGrid": f"SG.{LETTERS[:22]}.{LETTERS}_-{LETTERS}",
    "Telegram": "1234567890:AA" + LETTERS[:33],
    "a JWT": f"eyJ{LETTERS}.eyJ{LETTERS}.{LETTERS}",
    "a private key": "-----BEGIN RSA {0}\n{1}\n{1}\n-----END RSA {0}".format(
        "PRIVATE KEY-----", LETTERS
    ),
}
INNOCENT = [
    "https://h/x?ms-1234, sk-learn, ask-me-anything-about-it, AKIA, ya29, SG.1.2, eyJ.eyJ.x",
    "a token: 12345678 of 32000; key 'rank'; the secret of it; hf_hub_download, hf_transfer",
    "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
    "eos_token=<|endoftext|> pad_token=endoftext_and_more mask_token=somethinglong",
    "TOKENIZER_NAME=smollm2-135m, max_new_tokens=123456789, key=value_of_a_dict",
    "https://h/x.csv?page=12345678&tokens=12345678",
    f"commit {HEX}",
    '{"eos_token": "</s>", "tokens": 4096, "authorization": 5}',
    "the bearer certificates of authorization",
    "https://proxy.example:80/simple, me@there.example",
    "set WANDB_API_KEY or HF_TOKEN= first",
]


@pytest.mark.parametrize("said", SAID.values(), ids=list(SAID))
def test_a_token_goes_and_the_rest_stays(said):
    clean = redacted(said)
    assert LETTERS not in clean
    assert HEX not in clean
    assert "[redacted]" in clean
    assert redacted(clean) == clean


@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
def test_a_token_of_a_known_form_goes_and_its_neighbors_stay(form):
    assert redacted(f"at {form}, then") == "at [redacted], then"
    text = json.dumps({"said": f"{form} no", "next": 1})
    assert json.loads(redacted(text)) == {"said": "[redacted] no", "next": 1}


@pytest.mark.parametrize(
    "piece",
    [
        *(
            "a-",
            "token-",
            "eyJaaaaaaaaaaaa-",
            "eyJaaaaaaaaaaaa.",
            "authorization ",
            "bearer ",
            "?a",
        ),
        *("://a", "-----BEGIN A ", "hf_", "sk-a", "x-api-key", "A", "1:AA", "\\\\", "token=", '"'),
    ],
)
def test_no_text_takes_long(piece):
    # What takes the square of the length takes minutes here, and milliseconds else.
    redacted(piece * (400_000 // len(piece)))


@pytest.mark.parametrize("text", INNOCENT)
def test_what_is_no_token_stays(text):
    assert redacted(text) == text


def test_json_stays_json():
    for value in ({"Authorization": f"Bearer {LETTERS}", "next": 1}, list(SAID.values()), SAID):
        text = redacted(json.dumps(value))
        assert type(json.loads(text)) is type(value)
        assert LETTERS not in text


SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "/wJalrXUtnFEMI/K7MDENG+bPxRfiCY",
    "MY_PASSWORD": 'pa"ss\\wörd-9',
    "PIN_PASSWORD": "33333333",
}


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("PGPASSWORD", "pa55-word", "pa55-word"),
        ("DB_PASS", "pa55-word", "pa55-word"),
        ("MYSQL_PWD", "pa55-word", "pa55-word"),
        ("GITHUB_PAT", LETTERS, LETTERS),
        ("AZURE_OPENAI_KEY", HEX[:32], HEX[:32]),
        ("SIGNING_PRIVATE_KEY", "abcdefgh", "abcdefgh"),
        ("DATABASE_URL", "postgres://me:pa55%2Fword@h:5432/db", "pa55/word"),
        ("HTTPS_PROXY", "http://me:pa55-word@proxy:80", "pa55-word"),
    ],
)
def test_a_variable_of_another_name_is_a_secret_too(monkeypatch, name, value, secret):
    monkeypatch.setenv(name, value)
    assert redacted(f"said {secret}, {value}!") in (
        "said [redacted], [redacted]!",
        f"said [redacted], {value.partition('//')[0]}//[redacted]@{value.partition('@')[2]}!",
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("SORT_KEY", "timestamp"), ("MAX_TOKENS", "1000000000"), ("SHARD_KEY", "layer-and-head")),
        *(("KEYBOARD_LAYOUT", "us-dvorak-1234567"), ("HTTP_PROXY", "http://proxy.example:8080")),
        *(("PWD", "/no/such/folder-1234567"), ("COMPASS_URL", "compass://here.example")),
    ],
)
def test_a_variable_that_holds_no_secret_hides_nothing(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert redacted(f"set {value}") == f"set {value}"


@pytest.mark.parametrize("write", [str, json.dumps, repr, escape, lambda v: quote(v, safe="")])
def test_a_secret_of_the_environment_goes_however_it_is_written(monkeypatch, write):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
        assert redacted(f"boto: {write(value)}, 401").replace('"', "").replace("'", "") == (
            "boto: [redacted], 401"
        )


def test_every_password_of_a_variable_with_several_urls_is_one(monkeypatch):
    monkeypatch.setenv("MONGO", "mongodb://a:first-pa55@h,mongodb://b:second-pa55@h")
    assert redacted("first-pa55 or second-pa55") == "[redacted] or [redacted]"


def test_what_is_secret_is_a_value_of_its_own_and_no_part_of_another(monkeypatch, tmp_path):
    monkeypatch.setenv("PIN_PASSWORD", "33333333")
    monkeypatch.setenv("TOKENIZER_NAME", "smollm2-135m")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path))
    value = {"model": "smollm2-135m", "loss": 0.3333333333333333, "seed": 33333333}
    value["path"] = f"{tmp_path}/x"
    assert redacted_values(value) == value
    assert redacted(json.dumps({"loss": value["loss"]})) == '{"loss": 0.3333333333333333}'
    assert redacted_values({"pin": ["33333333", ("is 33333333!",)]}) == {
        "pin": ["[redacted]", ("is [redacted]!",)]
    }


def test_a_run_and_what_is_made_of_it_keep_no_secret(monkeypatch, tmp_path):
    monkeypatch.setenv("MY_TOKEN", LETTERS)
    lm = tiny_lm()
    lm.model.config._name_or_path = f"https://me:{LETTERS}@h/m"
    rows = [Example(f"a {LETTERS}", "b", ("b",))] * 8
    task = GenerationTask("t", True, rows, rows[:2])
    settings = {"max_steps": 2, "save_steps": 1, "max_length": 128}
    run = train(lm, task, CONFIG, output_dir=tmp_path, name=f"x-{LETTERS}", **settings)
    run.result(60)
    write_run_report(run, budget(anatomy(lm.model), CONFIG, sequence_length=64))
    assert LETTERS not in run.folder.name
    files = [path for path in run.folder.rglob("*") if path.is_file()]
    assert [path for path in files if LETTERS.encode() in path.read_bytes()] == []


def everything_shown(run, failure):
    """What a notebook and a log can show of a failed run, and its files."""
    texts = [repr(run), str(failure), *run.notes, repr(run.snapshot)]
    texts += traceback.format_exception(failure)
    texts += traceback.format_exception(run.error)
    texts += [repr(run.error), repr(run.error.args), repr(run.error.__cause__)]
    files = [path.read_bytes() for path in run.folder.rglob("*") if path.is_file()]
    return "\n".join(texts).encode() + b"".join(files)


def fails(run):
    with pytest.raises(RunError, match=r"failed: .*\[redacted\]") as caught:
        run.result(60)
    assert run.state is RunState.FAILED
    shown = everything_shown(run, caught.value)
    assert LETTERS.encode() not in shown
    assert HEX.encode() not in shown
    return shown


@pytest.mark.parametrize("said", SAID.values(), ids=list(SAID))
def test_a_models_error_shows_no_token(tmp_path, said):
    lm = tiny_lm()

    def refuse(*_):
        try:
            raise OSError(13, said, f"/{said}")
        except OSError as cause:
            raise RuntimeError(f"in vain: {said}") from cause

    lm.model.lm_head.register_forward_hook(refuse)
    run = train(lm, tiny_task(), CONFIG, output_dir=tmp_path, max_steps=3, eval_examples=0)
    assert b"RuntimeError: in vain: " in fails(run)


def test_a_cause_that_alone_holds_a_token_is_not_shown(tmp_path):
    lm = tiny_lm()

    def refuse(*_):
        raise RuntimeError("401") from OSError(13, "refused", f"hf_{LETTERS}")

    lm.model.lm_head.register_forward_hook(refuse)
    run = train(lm, tiny_task(), CONFIG, output_dir=tmp_path, max_steps=3, eval_examples=0)
    with pytest.raises(RunError, match="RuntimeError: 401") as caught:
        run.result(60)
    assert LETTERS.encode() not in everything_shown(run, caught.value)


def test_a_trackers_error_shows_no_token(tmp_path, monkeypatch):
    from transformers import TrainerCallback
    from transformers.integrations import integration_utils

    class Tracker(TrainerCallback):
        def on_train_begin(self, *_, **__):
            raise ConnectionError(SAID["a dict of headers"])

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "trackio", Tracker)
    monkeypatch.setattr(checks, "check_trackers", lambda _: None)
    fails(
        train(
            tiny_lm(),
            tiny_task(),
            CONFIG,
            output_dir=tmp_path,
            max_steps=3,
            eval_examples=0,
            report_to="trackio",
        )
    )


def test_an_error_before_the_worker_shows_no_token(tmp_path, monkeypatch):
    """A queued run prepares itself on its own thread, when its turn comes."""
    first = train(tiny_lm(), tiny_task(), CONFIG, output_dir=tmp_path, max_steps=5000)
    second = train(tiny_lm(), tiny_task(), CONFIG, output_dir=tmp_path, max_steps=3)
    assert second.state is RunState.QUEUED

    def refuse(_):
        raise ConnectionError(SAID["a Hugging Face token"])

    monkeypatch.setattr(run_module, "base_fingerprint", refuse)
    first.stop()
    fails(second)


def test_an_error_without_tokens_is_kept_itself():
    cause, error = KeyError("why"), torch.OutOfMemoryError("CUDA out of memory")
    error.__cause__ = cause
    assert failures.showable(error) is error
    assert error.__cause__ is cause


def refusing(**_: object) -> None:
    try:
        raise ConnectionError(SAID["a URL's token"])
    except ConnectionError as error:
        raise OSError("no such data set") from error


def test_what_a_notebook_shows_below_an_error_has_no_secret(monkeypatch):
    """Jupyter keeps the whole chain of a traceback: an error, its cause, and that one's."""
    monkeypatch.setattr(tables, "hub_reachable", lambda: True)
    monkeypatch.setattr("datasets.load_dataset_builder", lambda *_, **__: refusing())
    with pytest.raises(errors.TaskError, match="cannot be loaded: GET ") as caught:
        load_task("owner/name", prompt="a", completion="b")
    shown = "".join(traceback.format_exception(caught.value))
    assert LETTERS not in shown
    assert "OSError: no such data set" in shown


def test_a_cause_without_secrets_stays_itself():
    error = OSError("no such data set")
    error.__context__ = ValueError("why")
    assert errors.as_cause(error) is error
    error.__context__ = error  # a ring of them
    assert errors.as_cause(error) is error
    secret = ValueError(SAID["a bearer"])
    assert LETTERS not in str(errors.as_cause(secret))
    assert "ValueError: sent [redacted]" in str(errors.as_cause(secret))


def test_every_error_of_ours_has_its_cause_looked_at():
    kept = "run.error"  # was looked at when the run failed
    for folder in ("lora_lab", "widgets"):
        for path in (ROOT / folder).rglob("*.py"):
            nodes = ast.walk(ast.parse(path.read_text("utf-8")))
            causes = [ast.unparse(n.cause) for n in nodes if isinstance(n, ast.Raise) and n.cause]
            odd = {cause for cause in causes if not cause.startswith("as_cause(")}
            assert odd <= {kept, "None"}, path


def test_errors_warnings_reprs_and_figures_keep_no_secret(monkeypatch):
    """What a notebook's file keeps of a cell: its traceback, its warnings, its value, a figure."""
    monkeypatch.setenv("MY_PASSWORD", "pa55-word")
    said = "https://hub?token=abcdef123456 pa55-word"
    kept = [
        *(str(kind(said)) for kind in (errors.ConfigError, errors.TaskError, errors.RunError)),
        repr(errors.ModelError(said)),
        repr(dataclasses.replace(tiny_task(), name=said)),
        repr(ChatTask(said, False, (), ())),
        repr(ClassificationTask(said, False, (said,), (), ())),
    ]
    with pytest.warns(UserWarning, match="redacted") as found:
        warn(said)
    kept.append(str(found[0].message))
    figure = Figure(
        {
            "data": [
                {"type": "scatter", "x": [1.0], "y": [2.0], "name": said, "text": [said]},
                {"type": "bar", "x": np.array([said], object), "y": np.array([2.0])},
            ],
            "layout": {"title": {"text": said}, "annotations": [{"text": said}]},
        }
    )
    kept += [figure.to_json(), figure.to_html(include_plotlyjs=False)]
    for text in kept:
        assert "[redacted]" in text
        assert "pa55-word" not in text
        assert "abcdef123456" not in text
    assert json.loads(figure.to_json())["data"][0]["y"] == [2.0]
