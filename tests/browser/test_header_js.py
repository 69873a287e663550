"""The header's line in Chromium, with a fake model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from tests.browser.esm import EsmPage

pytestmark = pytest.mark.browser
LINE = "12 GiB in use by others: <b>python</b> (42) 11 GiB"


def test_others_on_the_gpu_are_named_behind_it(esm_page: Callable[..., EsmPage]) -> None:
    esm = esm_page("header", {"chips": ["tiny"], "device": "NVIDIA L4 · bfloat16", "others": ""})
    device = esm.view().locator(".ll-header-device")
    expect(device).to_have_text("NVIDIA L4 · bfloat16")
    esm.set(others=LINE)
    expect(device).to_have_text(f"NVIDIA L4 · bfloat16 · {LINE}")
    expect(device.locator("b")).to_have_count(0)
    esm.set(others="")
    expect(device).to_have_text("NVIDIA L4 · bfloat16")
