"""The exported site in a real browser, from disk, with every request to another place refused."""

import os
import re

import pytest
from browser_checks import IN_A_BROWSER
from toy_world import make_atlas, make_world

import saekit

pytestmark = [
    *IN_A_BROWSER,
    pytest.mark.filterwarnings("ignore::saekit.identity.UnrecordedWarning"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A site whose tables and search index have several parts, as those of wide dictionaries."""
    folder = tmp_path_factory.mktemp("site") / "a folder"
    with pytest.MonkeyPatch.context() as patch:
        for module in ("pages", "export"):
            patch.setattr(f"saekit.site.{module}.BLOCK", 20)
            patch.setattr(f"saekit.site.{module}.ROWS", 10)
        saekit.export_site(make_atlas(make_world()), folder, progress=False)
    return folder


@pytest.fixture
def page(browser, folder):
    """An empty page; a request that leaves the folder or a message on the console fails the test."""
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    context.set_default_timeout(10_000)
    trouble = []

    def route(route):
        inside = route.request.url.startswith(folder.as_uri())
        if not inside:
            trouble.append(route.request.url)
        route.continue_() if inside else route.abort()

    context.route("**/*", route)
    page = context.new_page()
    page.on("console", lambda message: trouble.append(message.text))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("dialog", lambda dialog: trouble.append(dialog.message) or dialog.dismiss())
    yield page
    context.close()
    assert trouble == []


def loaded(page):
    """The files of the search index that the page has asked for."""
    return page.evaluate(
        "[...document.scripts].map(s => s.src.split('/').slice(-2).join('/')).filter(s => /search/.test(s))"
    )


def test_search_select_follow_a_link_and_go_back(page, folder):
    page.goto((folder / "24" / "1" / "21.html").as_uri())
    page.get_by_role("heading", name="Latent 21").wait_for()
    assert loaded(page) == []
    page.keyboard.press("/")
    page.keyboard.type("queen")
    results = page.get_by_role("region", name="Search results")
    first = results.get_by_role("link").first
    results.get_by_text(re.compile(r"^\d+ latents$")).wait_for()
    assert loaded(page)[:2] == ["24/search-0.js", "24/search-1.js"]
    assert len(loaded(page)) == 6
    assert first.locator(".place").inner_text() == "8 / 2"
    n = int(results.get_by_role("status").inner_text().split()[0])
    assert n == results.get_by_role("listitem").count() > 3
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_url("**/24/0/*.html")
    found = page.url
    page.go_back()
    page.wait_for_url("**/24/1/21.html*")
    assert page.get_by_label("Search labels and tokens").input_value() == "queen"
    results.get_by_text(f"{n} latents").wait_for()
    page.keyboard.press("Escape")
    page.go_forward()
    page.wait_for_url(found)
    near = page.locator("main article").get_by_role("link")
    goal = near.first.get_attribute("href")
    near.first.click()
    page.wait_for_url(f"**/{goal.removeprefix('../../')}")


def test_keys_go_to_the_previous_and_the_next_latent(page, folder):
    page.goto((folder / "48" / "1" / "20.html").as_uri())
    page.keyboard.press("ArrowRight")
    page.wait_for_url("**/48/1/21.html")
    page.keyboard.press("ArrowLeft")
    page.wait_for_url("**/48/1/20.html")
    page.keyboard.press("ArrowLeft")
    page.wait_for_url("**/48/0/19.html")
    page.keyboard.press("r")
    page.wait_for_function("!location.href.endsWith('/48/0/19.html')")
    page.keyboard.press("/")
    page.keyboard.type("river")
    page.keyboard.press("ArrowLeft")
    assert page.get_by_label("Search labels and tokens").input_value() == "river"


def rows(page):
    """The cells of the table that is shown."""
    return page.locator("#latents tbody tr").evaluate_all(
        "rows => rows.map(row => [...row.cells].map(cell => cell.innerText))"
    )


def test_a_table_is_sorted_filtered_and_paged_in_the_browser(page, folder):
    page.goto((folder / "48" / "index.html").as_uri())
    still = {row[0]: row for row in rows(page)}
    assert [*still] == [str(latent) for latent in range(10)]
    assert loaded(page) == []
    page.get_by_role("button", name="Latent").click()
    page.get_by_text("48 latents, page 1 of 5").wait_for()
    # Written by the script as the page has them.
    assert rows(page) == [still[str(latent)] for latent in range(10)]
    page.get_by_role("button", name="Density").click()
    page.locator("th[aria-sort=descending]").get_by_text("Density").wait_for()
    page.get_by_role("button", name="5", exact=True).click()
    page.get_by_text("48 latents, page 5 of 5").wait_for()
    last = rows(page)
    assert len(last) == 8
    assert last[-1][1] == "dead"
    assert last[-1][3] == "0.0%"
    page.go_back()
    page.get_by_text("48 latents, page 1 of 5").wait_for()
    densities = [float(row[3].rstrip("%")) for row in rows(page)]
    assert densities == sorted(densities, reverse=True)
    page.get_by_label("Label or token").fill("queen")
    page.get_by_text("page 1 of 1").wait_for()
    assert all("queen" in " ".join(row) for row in rows(page))
    page.get_by_label("Label or token").fill("")
    page.get_by_label("Status").select_option("dead")
    page.get_by_text("1 latent, page 1 of 1").wait_for()
    page.get_by_role("button", name="Reset").click()
    page.get_by_text("48 latents, page 1 of 5").wait_for()
    page.locator("#latents tbody a").first.click()
    page.wait_for_url("**/48/*/*.html")


def test_hostile_text_is_found_and_does_nothing(page, folder):
    page.goto((folder / "index.html").as_uri())
    page.get_by_label("Search labels and tokens").fill("</script>")
    results = page.get_by_role("region", name="Search results")
    results.get_by_text("<script>alert(1)</script>").first.wait_for()
    assert page.evaluate("document.querySelectorAll('body script').length") == 0


def test_a_page_without_scripts_has_its_content_and_links(browser, folder):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((folder / "index.html").as_uri())
    assert not page.get_by_label("Search labels and tokens").is_visible()
    page.get_by_role("link", name="24", exact=True).first.click()
    page.get_by_role("link", name="2", exact=True).last.click()
    page.get_by_role("link", name="15", exact=True).click()
    page.get_by_role("heading", name="Latent 15").wait_for()
    page.get_by_role("link", name="Random").click()
    context.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 900])
def test_nothing_is_wider_than_the_page_and_screenshots_are_kept(browser, folder, theme, width, tmp_path):
    kept = os.environ.get("SAEKIT_SCREENSHOTS", tmp_path)
    context = browser.new_context(viewport={"width": width, "height": 1000}, color_scheme=theme)
    page = context.new_page()
    for name, place in (("front", "index.html"), ("table", "48/index.html"), ("latent", "24/0/5.html")):
        page.goto((folder / place).as_uri())
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
        page.screenshot(path=f"{kept}/site-{name}-{theme}-{width}.png", full_page=True)
    page.keyboard.press("/")
    page.keyboard.type("king")
    page.get_by_role("region", name="Search results").get_by_role("link").first.wait_for()
    page.screenshot(path=f"{kept}/site-search-{theme}-{width}.png")
    context.close()
