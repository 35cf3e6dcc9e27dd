"""A real browser without a window, for what is to be measured or tested in a page."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from regard.errors import DataError

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
# several pages at once: none of them is in the background
FLAGS += ["--disable-background-timer-throttling", "--disable-renderer-backgrounding"]
FLAGS += ["--disable-backgrounding-occluded-windows"]


@contextmanager
def chromium() -> Iterator[Any]:
    """Playwright's browser: the Chromium that is installed, or that $CHROMIUM names. Raises DataError."""
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        raise DataError("Chromium is not installed: apt-get install chromium, or set CHROMIUM to where it is")
    if find_spec("playwright") is None:
        raise DataError("driving a browser needs playwright: pip install playwright")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()
