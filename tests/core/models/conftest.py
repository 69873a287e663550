"""What the tests of models share."""

from __future__ import annotations

import socket

import pytest

from lora_lab.models import embedded
from tests.helpers.tiny_text import tiny_llama, tiny_tokenizer


@pytest.fixture
def folder(tmp_path):
    """A saved tiny model with its tokenizer."""
    place = tmp_path / "tiny"
    tiny_llama().save_pretrained(place)
    tiny_tokenizer().save_pretrained(place)
    return place


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of our own."""
    monkeypatch.setenv("LORA_LAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_wheels(monkeypatch, cache):
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
