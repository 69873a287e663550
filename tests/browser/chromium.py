"""Which Chromium the browser tests use: $CHROMIUM, the system's, or Playwright's own.

``python -m tests.browser.chromium`` says which, after trying Playwright's download where there is
none; without any, the browser tests skip, aloud.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

LAUNCH_ARGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
MISSING = (
    "BROWSER TESTS SKIPPED: no Chromium; install Debian's `chromium`, set CHROMIUM to one, "
    "or run `playwright install chromium`"
)
_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_MACOS = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
_DOWNLOAD_SECONDS = 300


def find(playwrights_own: str | None = None) -> str | None:
    """Return the path of a Chromium, or None."""
    candidates = [os.environ.get("CHROMIUM"), *map(shutil.which, _NAMES), _MACOS, playwrights_own]
    return next((path for path in candidates if path and Path(path).exists()), None)


def main() -> None:
    """Say which Chromium there is; try Playwright's download where there is none."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    if find(own) is None:
        download = [sys.executable, "-m", "playwright", "install", "chromium"]
        try:
            subprocess.run(download, timeout=_DOWNLOAD_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            print("Playwright's download of Chromium took too long")
    print(f"browser tests use {found}" if (found := find(own)) else MISSING, flush=True)


if __name__ == "__main__":
    main()
