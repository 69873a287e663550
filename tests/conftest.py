"""What all tests share: they leave nothing in the user's own cache but models."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Iterator

import hypothesis
import pytest

from lora_lab._util.files import cache_folder

# No test hangs on the clock: on a busy machine the first examples take longer than the rest.
hypothesis.settings.register_profile("no clock", deadline=None)
hypothesis.settings.load_profile("no clock")


def pytest_collection_finish() -> None:
    """Take what is imported by now out of the garbage collector's sight.

    A run collects garbage twice. Among all the libraries that the tests import, that takes longer
    than the tiny runs' training.
    """
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """Do so again after each file: what its tests were the first to import stays, too.

    What the browser's files share is closed when none of them follows.
    """
    yield
    if nextitem is None or nextitem.path != item.path:
        if nextitem is None or nextitem.path.parent.name != "browser":
            _close_the_browser()
        gc.collect()  # else its own garbage would stay as well
        gc.freeze()


def pytest_unconfigure() -> None:
    """A run that a test made fail on purpose is no failure of the tests' process."""
    _close_the_browser()  # after an interrupt
    if (at_exit := sys.modules.get("lora_lab.training.at_exit")) is not None:
        at_exit._failures.clear()


def _close_the_browser() -> None:
    if (kept := sys.modules.get("tests.browser.kept")) is not None:
        kept.KEPT.close()


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Set LORA_LAB_CACHE, for this process and those that it starts, unless it is set already.

    The key that marks the tests' runs goes there. Models that take minutes and half a GB to make,
    and the marks of the files that were verified, are shared with the user's cache.
    """
    if os.environ.get("LORA_LAB_CACHE"):
        yield
        return
    users, own = cache_folder(), tmp_path_factory.mktemp("cache")
    with contextlib.suppress(OSError):  # no home, or no links: they are made once more
        for shared in ("models", "verified"):
            (users / shared).mkdir(parents=True, exist_ok=True)
            (own / shared).symlink_to(users / shared, target_is_directory=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORA_LAB_CACHE", str(own))
        yield
