"""The explorers in a real JupyterLab, driven by a real browser, without a network."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest
from browser_checks import IN_A_BROWSER, free_port

pytestmark = IN_A_BROWSER
TESTS = Path(__file__).resolve().parents[1]
SETUP = f"""
import os, sys, warnings
os.environ["TQDM_DISABLE"] = "1"
sys.path[:0] = [{str(TESTS)!r}, {str(TESTS.parent)!r}]
warnings.simplefilter("ignore")  # toys record little of where they come from
from toy_world import make_world
from saekit.widgets import LatentExplorer, NoveltyExplorer
world = make_world()
"""
LATENT = "LatentExplorer(world.family, world.evidence, width=24, latent=1)"
WORKSPACE = """
import tempfile
from toy_model import make_workspace
workspace, circuit, edits = make_workspace(tempfile.mkdtemp())
workspace
"""
NOVELTY = "NoveltyExplorer(world.insertion, world.evidence[48], null=world.null, theta=0.7)"
SOURCES = [SETUP + LATENT, NOVELTY, WORKSPACE, "circuit", "edits"]
SCREENSHOTS = TESTS.parent / "build/screenshots"


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
    """A folder with a notebook of explorers that has not been run."""
    root = tmp_path_factory.mktemp("lab") / "notebooks"
    root.mkdir()
    cells = [nbformat.v4.new_code_cell(source) for source in SOURCES]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), root / "explore.ipynb")
    return root


def refuse(page, route):
    """Note a request to another machine, and fail it."""
    page.outside.append(route.request.url)
    route.abort()


def opened(browser, address):
    """The notebook in a page of its own, with a kernel that is ready."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.outside = []  # what it asks of other machines
    page.route(lambda url: not url.startswith(address), lambda route: refuse(page, route))
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
        live(page, 4).get_by_text("explorer.show(pair=").wait_for(timeout=120_000)
        yield page
        assert not page.outside
        page.close()


def live(page, cell):
    """The live widget of a cell."""
    return page.locator(".jp-CodeCell").nth(cell).locator(".widget-vbox.saekit").first


def test_a_button_goes_to_the_next_latent(page):
    output = live(page, 0)
    output.get_by_text("Latent 1 of relu 24").wait_for()
    output.get_by_role("button", name="next").click()
    output.get_by_text("Latent 2 of relu 24").wait_for()
    output.get_by_text("queen").first.wait_for()
    assert output.get_by_text("Latent 1 of relu 24").count() == 0


def test_typing_a_latent_number_shows_it(page):
    output = live(page, 0)
    number = output.get_by_role("spinbutton", name="Latent")
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
    assert static.count() == len(SOURCES)
    assert not any(static.nth(place).is_visible() for place in range(len(SOURCES)))


def tab(page, name):
    """The workspace, with a view open."""
    workspace = live(page, 2)
    workspace.get_by_role("button", name=name, exact=True).click()
    workspace.get_by_text(f"view='{name.lower()}'").wait_for()
    return workspace


def code(page):
    """The line under the workspace that restores what it shows."""
    return live(page, 2).locator("code").last


def wait_for(page, text):
    live(page, 2).get_by_text(text).last.wait_for(timeout=20_000)


def test_a_search_and_enter_open_the_first_latent_found(page):
    tab(page, "Latent")
    search = live(page, 2).get_by_label("Search")
    search.fill("20/7")
    live(page, 2).locator(".found [data-goto='20/7'][role=link]").wait_for()
    search.press("Enter")
    wait_for(page, "explorer.show(width=20, latent=7, view='latent'")


def test_keys_step_go_back_and_search(page):
    for key, latent in (("j", 8), ("ArrowRight", 9), ("k", 8), ("b", 9), ("f", 8)):
        page.keyboard.press(key)
        wait_for(page, f"explorer.show(width=20, latent={latent}, view='latent'")
    page.keyboard.press("/")
    assert live(page, 2).get_by_label("Search").evaluate("box => box === document.activeElement")
    page.keyboard.type("40/3")
    wait_for(page, "query='40/3'")
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    wait_for(page, "explorer.show(width=20, latent=9, view='latent'")
    # None of these reached JupyterLab, where b adds a cell.
    assert page.locator(".jp-CodeCell").count() == len(SOURCES)


def test_a_text_of_ones_own_is_read(page):
    box = live(page, 2).get_by_label("Your text")
    box.fill("the old <i>king</i> sleeps")
    box.press("Enter")
    wait_for(page, "text='the old <i>king</i> sleeps'")
    live(page, 2).locator(".latent .read").first.wait_for()
    assert live(page, 2).locator(".latent .read i").count() == 0


def test_a_link_is_followed_by_click_and_by_key(page):
    workspace = tab(page, "Splitting")
    link = workspace.locator("table [data-goto^='40/'][role=link]:visible").first
    target = link.get_attribute("data-goto").split("/")[1]
    link.click()
    wait_for(page, f"explorer.show(width=40, latent={target}, view='splitting'")
    back = workspace.locator("table [data-goto^='20/'][role=link]:visible").first
    target = back.get_attribute("data-goto").split("/")[1]
    back.focus()
    page.keyboard.press("Enter")
    wait_for(page, f"explorer.show(width=20, latent={target}, view='splitting'")
    page.keyboard.press("b")  # the focus is still inside, though the link is gone
    wait_for(page, "explorer.show(width=40")
    workspace.get_by_role("button", name="Back").click()
    wait_for(page, "explorer.show(width=20")


def test_a_table_is_sorted_by_its_titles_and_filtered(page):
    workspace = tab(page, "Table")
    workspace.locator("th [data-sort=density]").click()
    wait_for(page, "sort='density', descending=True")
    workspace.get_by_label("Filter").fill("density>0.1 dead=no")
    workspace.get_by_label("Filter").press("Enter")
    wait_for(page, "filter='density>0.1 dead=no'")
    workspace.get_by_label("Filter").fill("weight>3")
    workspace.get_by_label("Filter").press("Enter")
    workspace.get_by_role("alert").filter(has_text="A filter compares one of").wait_for()
    assert "filter='density>0.1 dead=no'" in code(page).inner_text()


def test_theta_is_dragged(page):
    workspace = tab(page, "Novelty")
    handle = workspace.locator(".noUi-handle:visible").first
    handle.scroll_into_view_if_needed()
    place = handle.bounding_box()
    x, y = place["x"] + place["width"] / 2, place["y"] + place["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 60, y, steps=5)
    page.mouse.up()
    code(page).filter(has_text="show(theta=0.7,").wait_for(state="hidden", timeout=20_000)
    theta = float(code(page).inner_text().split("show(theta=")[1].split(",")[0])
    assert 0.3 < theta < 0.7


def test_a_curve_is_scrubbed(page):
    workspace = tab(page, "Stitching")
    step = int(code(page).inner_text().split("show(step=")[1].split(")")[0])
    workspace.locator(".noUi-handle:visible").first.press("ArrowLeft")
    wait_for(page, f"show(step={step - 1})")


def test_a_meta_latent_is_switched_off(page):
    workspace = tab(page, "Meta")
    wait_for(page, "off=()")
    workspace.locator(".widget-checkbox:visible input").first.click()
    code(page).filter(has_text="off=()").wait_for(state="hidden", timeout=20_000)
    assert "off=(" in code(page).inner_text()


def test_a_list_is_kept_and_taken_along(page):
    workspace = tab(page, "My list")
    workspace.get_by_role("button", name="Pin", exact=True).click()
    workspace.get_by_label("Note").fill('a "note"')
    workspace.get_by_label("Note").press("Enter")
    workspace.get_by_role("cell", name='a "note"').wait_for()
    with page.expect_download() as download:
        workspace.get_by_text("CSV", exact=True).click()
    rows = Path(download.value.path()).read_text(encoding="utf-8").splitlines()
    assert rows[0] == "width,latent,label,note,dictionary"
    assert 'a ""note""' in rows[1]


def test_a_node_of_a_circuit_is_chosen(page):
    line = live(page, 3).locator("code").last
    before = line.inner_text()
    live(page, 3).locator("select[size]:visible").first.select_option(index=1)
    line.filter(has_text=before).wait_for(state="hidden", timeout=20_000)


def test_another_edit_is_chosen(page):
    live(page, 4).get_by_label("Attribute").select_option(index=1)
    live(page, 4).get_by_text("attribute='continent'").wait_for(timeout=20_000)


# Parts of a page that reach out of it on the right.
WIDER = """root => {
  const right = root.getBoundingClientRect().right + 1;
  return [...root.querySelectorAll("*")].filter(part => part.getBoundingClientRect().right > right)
    .map(part => `${part.tagName}.${part.className}`);
}"""


@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
def test_pictures_of_every_view_are_taken(page, theme):
    """To be looked at: they are kept in build/screenshots."""
    page.evaluate("theme => window.jupyterapp.commands.execute('apputils:change-theme', { theme })", theme)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.evaluate("() => document.querySelector('.Toastify')?.remove()")  # news of Jupyter
    for width in (1400, 900):
        page.set_viewport_size({"width": width, "height": 2400})
        for name in (
            "Latent",
            "Table",
            "Side by side",
            "Splitting",
            "Novelty",
            "Stitching",
            "Meta",
            "My list",
        ):
            workspace = tab(page, name)
            picture = f"{name.replace(' ', '_').lower()}-{theme.split()[1].lower()}-{width}.png"
            workspace.screenshot(path=SCREENSHOTS / picture)
            assert workspace.evaluate(WIDER) == [], name
    page.set_viewport_size({"width": 1400, "height": 1000})


def test_token_text_runs_nothing(page):
    assert page.evaluate("document.querySelectorAll('.saekit script').length") == 0


def test_a_saved_notebook_shows_the_static_form_when_it_is_opened_again(root, browser, page):
    """In another JupyterLab, with another kernel, where the live widgets' models are not to be found."""
    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    for cell in nbformat.read(root / "explore.ipynb", 4).cells:
        displayed = [dict(output.data) for output in cell.outputs if output.output_type == "display_data"]
        assert len(displayed) == 2, [data["text/plain"] for data in displayed]
    with lab(root) as address:
        again = opened(browser, address)
        shown = ("Latent 1 of relu 24", "relu 48 (seed 0) into relu 24 (seed 0)", "explorer.show(width=20")
        for cell, text in enumerate(shown):
            again.locator(".jp-CodeCell").nth(cell).locator(".saekit-static").get_by_text(
                text
            ).first.wait_for()
        missing = again.get_by_text("Error displaying widget: model not found")
        missing.first.wait_for(state="attached", timeout=30_000)
        assert missing.count() == len(SOURCES)
        assert not any(missing.nth(place).is_visible() for place in range(len(SOURCES)))
        # Run again, the cell has a live widget, which hides the static form.
        again.locator(".jp-CodeCell").nth(0).click()
        again.evaluate("() => window.jupyterapp.commands.execute('notebook:run-cell')")
        live(again, 0).get_by_text("Latent 1 of relu 24").wait_for(timeout=60_000)
        assert not again.locator(".jp-CodeCell").nth(0).locator(".saekit-static").is_visible()
        again.close()
