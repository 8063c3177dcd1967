"""The explorers in a real JupyterLab, driven by a real browser, without a network."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
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
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Address of a JupyterLab that serves one notebook of two explorers."""
    root = tmp_path_factory.mktemp("lab")
    cells = [nbformat.v4.new_code_cell(source) for source in (SETUP + LATENT, NOVELTY)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), root / "explore.ipynb")
    port = free_port()
    environment = {**os.environ, "JUPYTER_CONFIG_DIR": str(root / "config"), "SAEKIT_STATIC": ""}
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
    with open(root / "lab.log", "wb") as log:
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
                    pytest.fail(f"JupyterLab did not start:\n{(root / 'lab.log').read_text()}")
                time.sleep(0.3)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(20)


@pytest.fixture(scope="module")
def page(lab):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.goto(f"{lab}/doc/tree/explore.ipynb")
        # Keys pressed before the kernel is connected are lost, so the cells are run by command.
        page.wait_for_function(
            "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'",
            timeout=90_000,
        )
        page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells') }")
        page.get_by_text("explorer.show(theta=").first.wait_for(timeout=90_000)
        yield page
        browser.close()


def test_a_button_goes_to_the_next_latent(page):
    output = page.locator(".jp-CodeCell").nth(0)
    output.get_by_text("Latent 1 of relu 24").wait_for()
    output.get_by_role("button", name="next").click()
    output.get_by_text("Latent 2 of relu 24").wait_for()
    output.get_by_text("queen").first.wait_for()
    assert output.get_by_text("Latent 1 of relu 24").count() == 0


def test_typing_a_latent_number_shows_it(page):
    output = page.locator(".jp-CodeCell").nth(0)
    number = output.get_by_label("Latent")
    number.fill("10")
    number.press("Enter")
    output.get_by_text("Latent 10 of relu 24").wait_for()
    output.get_by_text("river").first.wait_for()


def test_the_slider_moves_theta_by_keyboard(page):
    output = page.locator(".jp-CodeCell").nth(1)
    before = output.get_by_text("explorer.show(theta=").first.inner_text()
    output.locator(".noUi-handle").first.press("ArrowRight")
    page.wait_for_function(
        "before => !document.body.innerText.includes(before)", arg=before.split("group")[0], timeout=20_000
    )
    after = output.get_by_text("explorer.show(theta=").first.inner_text()
    assert "theta=0.71" in after
    output.get_by_text("θ = 0.71").first.wait_for()


def test_token_text_runs_nothing(page):
    assert page.evaluate("document.querySelectorAll('.saekit script').length") == 0
