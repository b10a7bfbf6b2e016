"""Plots and pages: what is in them, and what they do in a real browser."""

from __future__ import annotations

import io
import itertools
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from conftest import small_photograph
from hpcm_codec.cli.compare import command as compare
from hpcm_codec.cli.eval import command as evaluate
from hpcm_codec.errors import FileError, HpcmError, UsageError
from hpcm_codec.evaluation.plot import draw_curves, spread_apart
from hpcm_codec.evaluation.reference import find_reference
from hpcm_codec.evaluation.report import compare_page
from hpcm_codec.evaluation.versions import Slider, Version, data_address

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def data_of(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def pixels_of(address: str) -> Any:
    import base64

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition("base64,")[2]))).convert("RGB"))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of two ordinary codecs on two pictures, with a reference curve."""
    folder = tmp_path_factory.mktemp("report")
    pictures = folder / "pictures <b>"
    pictures.mkdir()
    for number in range(2):
        Image.fromarray(small_photograph(240, 176, number)).save(pictures / f"p{number}.png")
    arguments = ["--dataset", pictures, "--codec", "webp,jpeg", "-q", "5,40,70,90", "--report", folder / "report.html"]
    more = ["--plot", folder / "curve.png", "--anchor", "kodak/avif"]
    result = CliRunner().invoke(evaluate, [str(argument) for argument in [*arguments, *more]])
    assert (folder / "report.html").is_file(), result.output
    return folder / "report.html"


# --------------------------------------------------------------------------------------------------------------- plots


def test_a_plot_is_the_same_each_time_and_can_be_read_without_colours(report: Path) -> None:
    curves = [find_reference(name).data for name in ("webp", "jpeg", "avif", "x265-444-10b-intra")]
    assert draw_curves(curves, ".png") == draw_curves(curves, ".png")
    svg = draw_curves(curves, ".svg", dataset="kodak").decode()
    assert svg == draw_curves(curves, ".svg", dataset="kodak").decode()
    assert "stroke-dasharray" in svg
    with Image.open(report.parent / "curve.png") as image:
        assert image.width > 1000
    # no two curves have the same dashes and mark
    from hpcm_codec.evaluation.plot import STYLES

    assert len({style[1:] for style in STYLES}) == len(STYLES)


def test_labels_are_moved_apart_and_no_further() -> None:
    assert spread_apart([0.1, 0.5, 0.9], 0.1) == [0.1, 0.5, 0.9]
    for heights in ([0.5] * 4, [0.1, 0.11, 0.5, 0.52, 0.9], [0.2, 0.21, 0.3]):
        shown = spread_apart(heights, 0.08)
        assert all(b - a >= 0.08 - 1e-9 for a, b in itertools.pairwise(shown))
        assert sum(shown) == pytest.approx(sum(heights))


def test_a_plot_of_another_kind_or_without_matplotlib_is_refused_before_measuring(
    report: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--dataset", str(report.parent / "pictures <b>"), "--codec", "jpeg", "-q", "50", "--plot"]
    assert isinstance(CliRunner().invoke(evaluate, [*arguments, "x.gif"]).exception, UsageError)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    error = CliRunner().invoke(evaluate, [*arguments, "x.png"]).exception
    assert isinstance(error, HpcmError)
    assert "pip install" in str(error)


# --------------------------------------------------------------------------------------------------------------- pages


def test_a_report_is_one_file_with_all_its_data(report: Path) -> None:
    page = report.read_text()
    assert not re.search(r"(?:src|href)\s*=\s*[\"'](?!data:)", page)
    assert not re.search(r"\bfetch\(|XMLHttpRequest|@import|url\(", page.replace("url(#inside)", ""))
    assert "default-src 'none'" in page
    assert "<b>" not in page.partition("<main")[0]
    data = data_of(page)
    assert [curve["name"] for curve in data["curves"]] == ["WebP", "JPEG", "AVIF (default tune)"]
    assert [curve["own"] for curve in data["curves"]] == [True, True, False]
    assert len(data["rows"]) == 16
    assert [slider["name"] for slider in data["sliders"]] == ["p0.png", "p1.png"]
    versions = data["sliders"][0]["versions"]
    assert [version["name"] for version in versions] == ["Original", "WebP", "JPEG"]
    assert np.array_equal(pixels_of(versions[0]["src"]), small_photograph(240, 176, 0))


def test_pixels_in_a_page_are_exact_grey_ones_too() -> None:
    colours, grey = small_photograph(), small_photograph()[..., :1]
    assert np.array_equal(pixels_of(data_address(colours)), colours)
    assert np.array_equal(pixels_of(data_address(grey)), np.repeat(grey, 3, axis=2))


def test_a_name_cannot_end_the_script_it_stands_in() -> None:
    evil = "</script><script>alert(1)</script><!--<!--DATA-->"
    slider = Slider(
        evil, (Version("Original", small_photograph(8, 8)), Version("x", small_photograph(8, 8), 1, 2, 3.0))
    )
    page = compare_page([slider], [evil])
    assert page.count("<script") == 2
    assert data_of(page)["sliders"][0]["name"] == evil
    assert "alert(1)</script>" not in page


def test_compare_gives_all_codecs_the_same_size(tmp_path: Path, photograph: Path) -> None:
    page = tmp_path / "page.html"
    arguments = [str(photograph), "--codec", "hpcm,jpeg,webp", "-o", str(page), "--device", "cpu"]
    result = CliRunner().invoke(compare, [*arguments, "-q", "80"])
    assert result.exception is None, result.exception
    details = [version["detail"] for version in data_of(page.read_text())["sliders"][0]["versions"]]
    ours, jpeg, webp = (int(detail.split(" bytes")[0].replace(",", "")) for detail in details[1:])
    assert ours <= webp
    assert ours <= jpeg
    assert "WebP: " in result.output
    assert isinstance(CliRunner().invoke(compare, arguments).exception, FileError)
    sized = CliRunner().invoke(compare, [*arguments, "-f", "--size", "900"])
    assert sized.exception is None, sized.exception
    assert int(re.findall(r"hpcm phase1-lite: ([0-9,]+) bytes", sized.output)[0].replace(",", "")) <= 900
    for wrong in (["-q", "50", "--bpp", "1"], ["--bpp", "0"], ["-q", "101"], ["--size", "many"]):
        assert isinstance(CliRunner().invoke(compare, [*arguments, "-f", *wrong]).exception, UsageError), wrong


# ------------------------------------------------------------------------------------------------------------- browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, headless, driven by playwright."""
    api = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Opened:
    """A report open in a browser window. errors: what the page complained of; requests: what it asked a network for."""

    def __init__(self, browser: Any, report: Path, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(report.as_uri())
        self.page.wait_for_selector(".layer.right img")
        self.page.wait_for_function("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")

    def split(self) -> float:
        """Where the divider is, in hundredths."""
        return float(self.page.locator(".divider").get_attribute("aria-valuenow"))

    def zoom(self) -> int:
        """Per cent of one screen pixel for one picture pixel."""
        text = self.page.locator(".viewer .chips[aria-label=Zoom] .what").last.inner_text()
        return int(text.removesuffix(" %"))


@pytest.fixture
def desktop(browser: Any, report: Path) -> Iterator[Opened]:
    opened = Opened(browser, report, viewport={"width": 1200, "height": 800})
    yield opened
    opened.context.close()


@pytest.fixture
def phone(browser: Any, report: Path) -> Iterator[Opened]:
    size = {"width": 390, "height": 844}
    opened = Opened(browser, report, viewport=size, device_scale_factor=2, has_touch=True, is_mobile=True)
    yield opened
    opened.context.close()


def test_the_page_works_without_errors_and_asks_no_network(desktop: Opened) -> None:
    assert desktop.errors == []
    assert [url for url in desktop.requests if not url.startswith(("file:", "data:"))] == []
    assert desktop.page.locator("svg.chart polyline").count() == 3
    assert desktop.page.locator("tbody tr").count() >= 16


def test_the_slider_works_by_keyboard_alone(desktop: Opened) -> None:
    keys = desktop.page.keyboard
    desktop.page.locator(".divider").focus()
    start = desktop.split()
    keys.press("ArrowRight")
    assert desktop.split() == start + 2
    keys.press("Home")
    assert desktop.split() == 0
    keys.press("End")
    assert desktop.split() == 100
    keys.press("p")
    assert desktop.zoom() == 100
    keys.press("+")
    assert desktop.zoom() == 200
    assert "pixels" in desktop.page.locator(".stage").get_attribute("class")
    before = desktop.page.locator(".layer.left img").get_attribute("style")
    keys.press("+")
    keys.press("+")
    keys.press("Shift+ArrowRight")
    assert desktop.page.locator(".layer.left img").get_attribute("style") != before
    keys.press("3")
    assert desktop.page.locator(".tag.right").inner_text() == "JPEG"
    keys.press("x")
    assert desktop.page.locator(".tag.left").inner_text() == "JPEG"
    keys.press("n")
    assert "p1.png" in desktop.page.locator(".layer.left img").get_attribute("alt")
    keys.press("0")
    assert "zoomed" not in desktop.page.locator(".stage").get_attribute("class")


def test_both_versions_stay_on_top_of_each_other_and_show_their_own_pixels(desktop: Opened) -> None:
    page = desktop.page
    page.locator(".divider").focus()
    page.keyboard.press("4")  # there is none: nothing happens
    assert page.locator(".tag.right").inner_text() == "WebP"
    page.keyboard.press("p")
    styles = page.eval_on_selector_all(".layer img", "(all) => all.map((image) => image.style.transform)")
    assert styles[0] == styles[1]
    page.evaluate("document.querySelector('.tag.left').remove()")
    page.keyboard.press("End")  # all of the left version
    shot = np.asarray(Image.open(io.BytesIO(page.locator(".stage").screenshot())).convert("RGB"))
    original = small_photograph(240, 176, 0)
    # the original's pixels are on the screen as they are, wherever the stage has put them
    window = np.lib.stride_tricks.sliding_window_view(shot, (20, 20, 3)).reshape(-1, 1200)
    patch = original[60:80, 30:50].reshape(1200)
    assert (window == patch).all(axis=1).any()


def test_a_mouse_drags_the_divider_and_pans_when_zoomed(desktop: Opened) -> None:
    page, stage = desktop.page, desktop.page.locator(".stage")
    box = stage.bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.25, middle[1], steps=4)
    page.mouse.up()
    assert desktop.split() == pytest.approx(25, abs=1)
    page.mouse.dblclick(box["x"] + box["width"] * 0.75, middle[1])
    assert "zoomed" in stage.get_attribute("class")
    split, before = desktop.split(), page.locator(".layer.left img").get_attribute("style")
    page.mouse.move(box["x"] + box["width"] * 0.8, middle[1])
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.7, middle[1], steps=4)
    page.mouse.up()
    assert page.locator(".layer.left img").get_attribute("style") != before
    assert desktop.split() == split


def test_curves_show_their_figures_and_can_be_hidden(desktop: Opened) -> None:
    page = desktop.page
    page.locator("svg.chart").focus()
    page.keyboard.press("ArrowRight")
    assert re.search(r"WebP: 0\.\d+ bpp, \d+\.\d\d dB", page.locator(".reading").inner_text())
    page.locator(".legend input").nth(1).uncheck()
    assert page.locator("svg.chart polyline").count() == 2
    page.get_by_role("button", name="MS-SSIM", exact=True).click()
    assert "MS-SSIM, dB" in page.locator("svg.chart").text_content()


def test_the_table_sorts_by_any_column_and_filters(desktop: Opened) -> None:
    page = desktop.page
    table = page.locator("[aria-label='Every picture'] table")

    def column(place: int) -> list[str]:
        found: list[str] = table.locator(f"tbody tr td:nth-child({place})").all_inner_texts()
        return found

    table.get_by_role("button", name="bytes").click()
    sizes = [int(text.replace(",", "")) for text in column(4)]
    assert sizes == sorted(sizes)
    table.get_by_role("button", name="bytes").click()
    assert [int(text.replace(",", "")) for text in column(4)] == sorted(sizes, reverse=True)
    assert table.locator("th[aria-sort=descending]").inner_text().startswith("bytes")
    page.get_by_label("Codec").select_option("JPEG")
    assert set(column(1)) == {"JPEG"}


def test_on_a_phone_nothing_is_cut_off_and_touch_works(phone: Opened) -> None:
    page = phone.page
    assert phone.errors == []
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    stage = page.locator(".stage")
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    assert box["width"] > 330
    session = phone.context.new_cdp_session(page)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        where = [
            {"x": box["x"] + box["width"] * x, "y": box["y"] + box["height"] * y, "id": n}
            for n, (x, y) in enumerate(points)
        ]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": where})

    touch("touchStart", (0.5, 0.5))
    for step in range(1, 6):
        touch("touchMove", (0.5 + 0.06 * step, 0.5))
    touch("touchEnd")
    assert phone.split() == pytest.approx(80, abs=3)
    before = phone.zoom()
    touch("touchStart", (0.4, 0.5), (0.6, 0.5))
    for step in range(1, 6):
        touch("touchMove", (0.4 - 0.05 * step, 0.5), (0.6 + 0.05 * step, 0.5))
    touch("touchEnd")
    assert phone.zoom() > 1.5 * before
    assert page.evaluate("visualViewport.scale") == 1  # the page itself was not zoomed
