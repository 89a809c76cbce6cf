"""The page in a real browser: every tab, with files that a user gives it, and nothing from elsewhere."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the page needs Gradio: pip install 'pnf[app]'")
sync_api = pytest.importorskip("playwright.sync_api", reason="a browser needs Playwright: pip install playwright")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")]


# A machine may be busy.
sync_api.expect.set_options(timeout=60_000)


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as playwright:
        args = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=BROWSER, args=args)
        yield browser
        browser.close()


@pytest.fixture(params=[(1200, 900), (390, 844)], ids=["desk", "phone"])
def page(browser: sync_api.Browser, served: str, request: pytest.FixtureRequest) -> Iterator[sync_api.Page]:
    """The open page, which must ask nobody else for anything, raise no error, and be no wider than the screen."""
    width, height = request.param
    page = browser.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(60_000)
    asked: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(served)
    page.get_by_role("button", name="Draw", exact=True).wait_for()
    yield page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()
    hosts = {urlsplit(url).netloc for url in asked if not url.startswith(("data:", "blob:"))}
    assert (hosts, errors) == ({urlsplit(served).netloc}, [])


def open_tab(page: sync_api.Page, name: str) -> None:
    tab = page.get_by_role("tab", name=name)
    if not tab.is_visible():
        page.locator(".overflow-menu > button").click()
    page.get_by_text(name, exact=True).locator("visible=true").last.click()


def pictures(page: sync_api.Page) -> sync_api.Locator:
    return page.locator(".pixels:visible").last.locator(".thumbnail-item img")


def captions(page: sync_api.Page) -> list[str]:
    return [text.strip() for text in page.locator(".pixels:visible").last.locator(".caption-label").all_inner_texts()]


def test_samples_and_their_growth(page: sync_api.Page) -> None:
    samples, grown = page.locator(".pixels.samples").first, page.locator(".pixels:not(.samples)").first
    sync_api.expect(samples.locator("img")).to_have_count(16)
    sync_api.expect(grown.locator("img")).to_have_count(3)
    before = grown.locator("img").last.get_attribute("src")
    samples.locator("button").nth(4).click()
    sync_api.expect(grown.locator("img").last).not_to_have_attribute("src", before)
    chosen = grown.locator("img").last.get_attribute("src")
    page.get_by_role("button", name="New seed").click()
    sync_api.expect(grown.locator("img").last).not_to_have_attribute("src", chosen)
    assert page.get_by_label("Seed").first.input_value() != "0"


def test_an_uploaded_picture_is_upscaled(page: sync_api.Page, tmp_path: Path) -> None:
    open_tab(page, "Upscaling")
    sync_api.expect(pictures(page)).to_have_count(2 * 4)  # from the first example, beside the picture itself
    noise = np.random.default_rng(0).integers(0, 256, (4, 4), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "small.png")
    page.locator("input[type=file]").first.set_input_files(tmp_path / "small.png")
    sync_api.expect(pictures(page)).to_have_count(2 * 3)
    assert captions(page) == ["from 4x4", "f1x · 4x8", "f1y · 8x8"] * 2
    page.locator(".pixels:visible").first.locator("button").first.click()  # the first example once more
    sync_api.expect(pictures(page)).to_have_count(2 * 4)
    (tmp_path / "bad.png").write_text("no image")
    page.locator("input[type=file]").first.set_input_files(tmp_path / "bad.png")
    sync_api.expect(page.get_by_text("bad.png: wanted an image, got a file that Pillow refuses")).to_be_visible()


def test_the_way_between_two_images(page: sync_api.Page) -> None:
    open_tab(page, "Between two images")
    sync_api.expect(pictures(page)).to_have_count(9)
    before = pictures(page).last.get_attribute("src")
    page.locator(".pixels:visible").nth(1).locator("button").nth(3).click()
    sync_api.expect(pictures(page).last).not_to_have_attribute("src", before)


def test_the_bits_of_an_uploaded_picture(page: sync_api.Page, tmp_path: Path) -> None:
    open_tab(page, "Bits by scale")
    chart = page.locator("img[alt='Plot'], .matplotlib img, [data-testid='matplotlib'] img").first
    sync_api.expect(chart).to_be_visible()
    before = chart.get_attribute("src")
    noise = np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.jpg")
    page.locator("input[type=file]").first.set_input_files(tmp_path / "noise.jpg")
    sync_api.expect(chart).not_to_have_attribute("src", before)
