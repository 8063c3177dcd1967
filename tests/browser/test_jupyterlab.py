"""The explorers in a real JupyterLab, driven by a real browser, without a network."""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import nbformat
import pytest

CHROMIUM = shutil.which("chromium")
pytestmark = [
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
TESTS = Path(__file__).resolve().parents[1]
SETUP = f"""
import sys
sys.path[:0] = [{str(TESTS)!r}, {str(TESTS.parent)!r}]
from toy_world import make_world
from saekit.widgets import LatentExplorer, NoveltyExplorer
world = make_world()
"""
LATENT = "LatentExplorer(world.family, world.evidence, width=24, latent=1)"
NOVELTY = "NoveltyExplorer(world.insertion, world.evidence[48], null=world.null, theta=0.7)"


def free_port():
    """A port outside the range from which the system serves kernels and browsers of other tests."""
    while True:
        with suppress(OSError), socket.socket() as s:
            s.bind(("127.0.0.1", random.randrange(20_000, 30_000)))
            return s.getsockname()[1]


@contextmanager
def lab(root):
    """Address of a JupyterLab that serves a folder."""
    port = free_port()
    folders = {f"JUPYTER_{name}_DIR": str(root.parent / name) for name in ("CONFIG", "DATA")}
    environment = {**os.environ, **folders, "SAEKIT_STATIC": ""}
    options = [
        "--no-browser",
        "--allow-root",
        f"--port={port}",
        "--IdentityProvider.token=",
        f"--ServerApp.root_dir={root}",
        "--ServerApp.port_retries=0",
        "--LabApp.expose_app_in_browser=True",
    ]
    command = [sys.executable, "-m", "jupyterlab", *options]
    with open(root.parent / "lab.log", "wb") as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, cwd=root, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{address}/api", timeout=2).close()
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"JupyterLab did not start:\n{(root.parent / 'lab.log').read_text()}")
                time.sleep(0.3)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(20)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with a notebook of two explorers that has not been run."""
    root = tmp_path_factory.mktemp("lab") / "notebooks"
    root.mkdir()
    cells = [nbformat.v4.new_code_cell(source) for source in (SETUP + LATENT, NOVELTY)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), root / "explore.ipynb")
    return root


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def opened(browser, address):
    """The notebook in a page of its own, with a kernel that is ready."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.goto(f"{address}/doc/tree/explore.ipynb")
    # Keys pressed before the kernel is connected are lost, so the cells are run by command.
    page.wait_for_function(
        "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'",
        timeout=90_000,
    )
    return page


@pytest.fixture(scope="module")
def page(root, browser):
    with lab(root) as address:
        page = opened(browser, address)
        page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells') }")
        live(page, 1).get_by_text("explorer.show(theta=").wait_for(timeout=90_000)
        yield page
        page.close()


def live(page, cell):
    """The live widget of a cell."""
    return page.locator(".jp-CodeCell").nth(cell).locator(".widget-vbox.saekit")


def test_a_button_goes_to_the_next_latent(page):
    output = live(page, 0)
    output.get_by_text("Latent 1 of relu 24").wait_for()
    output.get_by_role("button", name="next").click()
    output.get_by_text("Latent 2 of relu 24").wait_for()
    output.get_by_text("queen").first.wait_for()
    assert output.get_by_text("Latent 1 of relu 24").count() == 0


def test_typing_a_latent_number_shows_it(page):
    output = live(page, 0)
    number = output.get_by_label("Latent")
    number.fill("10")
    number.press("Enter")
    output.get_by_text("Latent 10 of relu 24").wait_for()
    output.get_by_text("river").first.wait_for()


def test_the_slider_moves_theta_by_keyboard(page):
    output = live(page, 1)
    output.get_by_text("explorer.show(theta=0.7,").wait_for()
    output.locator(".noUi-handle").first.press("ArrowRight")
    output.get_by_text("explorer.show(theta=0.71,").wait_for(timeout=20_000)
    output.get_by_text("θ = 0.71").first.wait_for()


def test_the_live_explorer_hides_its_static_form(page):
    static = page.locator(".saekit-static")
    assert static.count() == 2
    assert not any(static.nth(place).is_visible() for place in range(2))


def test_token_text_runs_nothing(page):
    assert page.evaluate("document.querySelectorAll('.saekit script').length") == 0


def test_a_saved_notebook_shows_the_static_form_when_it_is_opened_again(root, browser, page):
    """In another JupyterLab, with another kernel, where the live widgets' models are not to be found."""
    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    for cell in nbformat.read(root / "explore.ipynb", 4).cells:
        assert sum(output.output_type == "display_data" for output in cell.outputs) == 2
    with lab(root) as address:
        again = opened(browser, address)
        for cell, text in enumerate(("Latent 1 of relu 24", "relu 48 (seed 0) into relu 24 (seed 0)")):
            again.locator(".jp-CodeCell").nth(cell).locator(".saekit-static").get_by_text(
                text
            ).first.wait_for()
        missing = again.get_by_text("Error displaying widget: model not found")
        missing.first.wait_for(state="attached", timeout=30_000)
        assert missing.count() == 2
        assert not any(missing.nth(place).is_visible() for place in range(2))
        # Run again, the cell has a live widget, which hides the static form.
        again.locator(".jp-CodeCell").nth(0).click()
        again.evaluate("() => window.jupyterapp.commands.execute('notebook:run-cell')")
        live(again, 0).get_by_text("Latent 1 of relu 24").wait_for(timeout=60_000)
        assert not again.locator(".jp-CodeCell").nth(0).locator(".saekit-static").is_visible()
        again.close()
