"""What the tests in a browser share."""

import os
import random
import shutil
import socket
from contextlib import contextmanager, suppress

import pytest

CHROMIUM = shutil.which("chromium")
IN_A_BROWSER = [
    pytest.mark.browser,
    # CI installs Chromium; there a missing one is a failure.
    pytest.mark.skipif(CHROMIUM is None and not os.environ.get("CI"), reason="Chromium is not installed"),
]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def started():
    """A Chromium without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def free_port():
    """A port outside the range from which the system serves kernels and browsers of other tests."""
    while True:
        with suppress(OSError), socket.socket() as s:
            s.bind(("127.0.0.1", random.randrange(20_000, 30_000)))
            return s.getsockname()[1]
