"""The workspace through Voila in a real browser; a request to another machine fails the test."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest
from browser_checks import IN_A_BROWSER, free_port

pytestmark = [
    *IN_A_BROWSER,
    # CI installs Voila; there a missing one is a failure.
    pytest.mark.skipif(
        importlib.util.find_spec("voila") is None and not os.environ.get("CI"),
        reason="Voila is not installed",
    ),
]
TESTS = Path(__file__).resolve().parents[1]
WORKSPACE = f"""
import sys, warnings
warnings.simplefilter("ignore")
sys.path[:0] = [{str(TESTS)!r}, {str(TESTS.parent)!r}]
from toy_world import make_atlas, make_world
from saekit.widgets import Workspace
Workspace(make_atlas(make_world()))
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The address of a served workspace; in the end Ctrl-C stops it cleanly, with nothing left behind."""
    folder = tmp_path_factory.mktemp("served")
    port = free_port()
    call = f"from saekit.site.serve import serve; serve({WORKSPACE!r}, port={port}, open_browser=False)"
    jupyter = {f"JUPYTER_{name}_DIR": str(folder / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    (folder / "tmp").mkdir()
    environment = {**os.environ, **jupyter, "TMPDIR": str(folder / "tmp"), "SAEKIT_STATIC": "1"}
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-c", call], stdout=log, stderr=log, env=environment, start_new_session=True
        )
    address, deadline = f"http://127.0.0.1:{port}/", time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"{address}voila/static/voila.js", timeout=2).close()
            break
        except urllib.error.HTTPError:
            break
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"Voila did not start:\n{(folder / 'log').read_text()}")
            time.sleep(0.3)
    yield address
    server.send_signal(signal.SIGINT)
    try:
        assert server.wait(30) == 0, (folder / "log").read_text()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
    assert not [*(folder / "tmp").glob("saekit-*")]


@pytest.fixture(scope="module")
def page(served, browser):
    outside = []
    context = browser.new_context(viewport={"width": 1400, "height": 1000})

    def route(route):
        inside = route.request.url.startswith((served, "data:", "blob:"))
        if not inside:
            outside.append(route.request.url)
        route.continue_() if inside else route.abort()

    context.route("**/*", route)
    page = context.new_page()
    page.set_default_timeout(20_000)
    page.goto(served, timeout=90_000)
    live(page).wait_for(timeout=90_000)
    yield page
    context.close()
    assert outside == []


def live(page):
    """The workspace; the static form beside it is hidden."""
    return page.locator(".widget-vbox.saekit").first


def test_the_workspace_opens_without_code(page):
    live(page).get_by_text("Latent 0 of relu 8").first.wait_for()
    assert "make_world" not in page.content()
    assert page.evaluate("document.querySelectorAll('.saekit script').length") == 0


def test_search_select_and_follow_a_link(page):
    page.locator(".saekit-search input").fill("river")
    live(page).get_by_text("Found for").wait_for()
    found = live(page).locator("[data-goto][role=link]").first
    width, latent = found.get_attribute("data-goto").split("/")
    assert int(latent) % 12 == 10  # the word that these latents read
    found.click()
    live(page).get_by_text(f"Latent {latent} of relu {width}").first.wait_for()
    live(page).get_by_role("button", name="← Back").click()
    live(page).get_by_text("Latent 0 of relu 8").first.wait_for()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 900])
def test_both_themes_and_screenshots_are_kept(page, theme, width, tmp_path):
    page.emulate_media(color_scheme=theme)
    page.set_viewport_size({"width": width, "height": 1000})
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in colour.removeprefix("rgb(").rstrip(")").split(","))
    assert brightness < 200 if theme == "dark" else brightness > 700
    page.screenshot(path=f"{os.environ.get('SAEKIT_SCREENSHOTS', tmp_path)}/served-{theme}-{width}.png")
