"""The browser application end to end, in headless Chromium, on the bundled sample patient.

The tests build on each other, in their order: they are one reader's session. Screenshots are kept in
`review_browser.ARTEFACTS`.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from MSTKDSegmentLib.regions import LABELS
from MSTKDSegmentLib.review.verdicts import read_verdicts
from MSTKDSegmentLib.segmentation_io import METADATA_PREFIX
from review_browser import (
    ARGUMENTS,
    ARTEFACTS,
    HELPERS,
    ROOT,
    SIZE,
    Server,
    after,
    can_draw,
    chromium,
    settled,
)
from review_browser import pixels as count

pytest.importorskip("trame_slicer", reason="the extra `review` is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
expect = playwright.expect
pytestmark = [
    pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine (set MSTKD_CHROMIUM to name one)"),
    pytest.mark.skipif(not can_draw(), reason="nothing to draw with: neither EGL nor OSMesa on this machine"),
]
SAMPLE = ROOT / "Resources" / "sample"
SLICES = ("Red", "Green", "Yellow")
COLOUR = {item.key: item.colour for item in LABELS}
COMMENT = 'Rim too thin at the back, "really"; ä'


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> SimpleNamespace:
    """A worklist of two cases, the second with FLAIR alone, and the file of the verdicts: a link that can be bent."""
    folder = tmp_path_factory.mktemp("review")
    first, second = folder / "cases" / "sample", folder / "cases" / "second"
    first.mkdir(parents=True)
    second.mkdir()
    for path in SAMPLE.glob("sample_*.nii.gz"):
        shutil.copy(path, first)
    shutil.copy(SAMPLE / "sample_flair.nii.gz", second / "second_flair.nii.gz")
    (folder / "out").mkdir()
    (folder / "out" / "real.csv").touch()
    verdicts = folder / "out" / "verdicts.csv"
    verdicts.symlink_to(folder / "out" / "real.csv")
    return SimpleNamespace(folder=folder, cases=folder / "cases", verdicts=verdicts, real=folder / "out" / "real.csv")


def start(place: SimpleNamespace, name: str) -> Server:
    return Server(
        place.folder / f"{name}.log",
        *(str(place.cases), "--verdicts", str(place.verdicts), "--token", "--picture", "png", "--device", "cpu"),
    )


@pytest.fixture(scope="module")
def server(place) -> Iterator[Server]:
    one = start(place, "first")
    yield one
    one.end()


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with playwright.sync_playwright() as driver:
        one = driver.chromium.launch(executable_path=chromium(), args=list(ARGUMENTS))
        yield one
        one.close()


@pytest.fixture(scope="module")
def context(browser) -> Iterator:
    one = browser.new_context(viewport=SIZE)
    one.add_init_script(HELPERS)
    one.set_default_timeout(60_000)
    expect.set_options(timeout=60_000)
    yield one
    one.close()


@pytest.fixture(scope="module")
def page(context, server) -> Iterator:
    """The reader's page; what it asks elsewhere and its scripts' errors end the module."""
    one = context.new_page()
    wrong: list[str] = []
    one.on("pageerror", lambda error: wrong.append(str(error)))
    one.on("request", lambda asked: wrong.append(asked.url) if not asked.url.startswith(LOCAL) else None)
    one.goto(server.url)
    settled(one)
    yield one
    assert wrong == []


LOCAL = ("http://127.0.0.1:", "ws://127.0.0.1:", "blob:http://127.0.0.1:", "data:")


def keep(page, name: str) -> None:
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(ARTEFACTS / f"{name}.png"))


def numbers(text: str) -> list[float]:
    return [float(one) for one in re.findall(r"\d+(?:\.\d+)?", text)]


def test_without_the_token_there_is_nothing_to_see(server, browser):
    stranger = browser.new_context()
    try:
        one = stranger.new_page()
        for address in (server.url.partition("?")[0], server.url[:-3]):
            answer = one.goto(address)
            assert answer.status == 403
            assert "token is missing or wrong" in one.inner_text("body")
        assert stranger.cookies() == []
    finally:
        stranger.close()


def test_the_patient_is_shown_and_the_token_leaves_the_address(page):
    assert "token" not in page.url
    expect(page.locator("#case-name")).to_have_text("sample")
    expect(page.locator("#disclaimer")).to_have_text("For research use only. Not a medical device.")
    assert [one.strip() for one in page.locator("#sequences button").all_inner_texts()] == ["T1", "T1Gd", "T2", "FLAIR"]
    expect(page.locator("#no-predictions")).to_be_visible()
    for view in SLICES:
        assert count(page, view, (0, 0, 0), 0) > 20_000  # the background of a brain alone is black ...
        grey = sum(count(page, view, (one / 255, one / 255, one / 255), 1) for one in range(40, 200, 3))
        assert grey > 15_000  # ... and the brain is not


def test_other_sequences_and_slices_can_be_chosen(page):
    before = page.screenshot(clip=page.locator('[data-view="Red"]').bounding_box())
    after(page, page.get_by_role("button", name="T2", exact=True).first.click)
    assert page.screenshot(clip=page.locator('[data-view="Red"]').bounding_box()) != before
    after(page, page.get_by_role("button", name="T1Gd", exact=True).first.click)
    where = page.inner_text("#axial-where")
    after(page, lambda: page.locator("#axial-slider").press("ArrowRight"))
    expect(page.locator("#axial-where")).not_to_have_text(where)
    moved = page.inner_text("#axial-where")
    box = page.locator('[data-view="Red"]').bounding_box()
    page.mouse.move(box["x"] + 120, box["y"] + 150)
    after(page, lambda: page.mouse.wheel(0, 100))
    expect(page.locator("#axial-where")).not_to_have_text(moved)


def test_a_run_can_be_cancelled(page):
    page.click("#segment")
    page.locator("#cancel").click()
    expect(page.locator("#run-said")).to_have_text("Cancelled; nothing was kept.")
    expect(page.locator("#predictions")).to_have_count(0)


def test_segmenting_from_two_sequences_adds_a_prediction_with_its_figures(page):
    for name in ("T1", "T2"):  # all were chosen
        page.locator("#segment-sequences").get_by_role("button", name=name, exact=True).click()
    expect(page.locator("#segment-sequences button.on")).to_have_count(2)
    page.click("#segment")
    expect(page.locator("#run-text")).to_contain_text("%")
    expect(page.locator("#run-said")).to_have_text("T1Gd+FLAIR: done.")
    expect(page.locator("#predictions .row.chosen")).to_contain_text("T1Gd+FLAIR")
    dice = page.locator("#figures tr", has_text="Dice")
    expect(dice).to_be_visible()
    # The model card says 0.84, 0.78 and 0.72 for these two sequences; the sample patient is an easy one.
    assert all(0.6 < one <= 1 for one in numbers(dice.inner_text()))
    expect(page.locator("#places .row")).not_to_have_count(0)


def test_the_overlay_has_the_colours_of_the_structures(page):
    settled(page)
    for view in SLICES:  # half translucent: no pixel has the very colour
        assert count(page, view, COLOUR["ED"], 3) < 20
    after(page, lambda: page.locator("#prediction-opacity").press("End"))
    for view in SLICES:
        assert count(page, view, COLOUR["ED"], 3) > 800
        assert count(page, view, COLOUR["ET"], 3) > 300
        # The outlines of the ground truth, in a paler green, lie over it.
        assert count(page, view, [one + 0.55 * (1 - one) for one in COLOUR["ED"]], 3) > 100
    after(page, page.locator("#show-ED").click)
    for view in SLICES:
        assert count(page, view, COLOUR["ED"], 3) == 0
        assert count(page, view, COLOUR["ET"], 3) > 300
    after(page, page.locator("#show-ED").click)
    after(page, page.locator("#prediction-filled").click)
    assert all(count(page, view, COLOUR["ET"], 3) == 0 for view in SLICES)
    after(page, page.locator("#prediction-filled").click)
    for _ in range(10):
        page.locator("#prediction-opacity").press("ArrowLeft")
    after(page, lambda: page.locator("#prediction-opacity").press("ArrowLeft"))
    keep(page, "review-browser")


def test_the_next_worst_place_moves_all_views(page):
    before = [page.inner_text(f"#{plane}-where") for plane in ("axial", "coronal", "sagittal")]
    after(page, page.locator("#next-place").click)
    expect(page.locator("#place-text")).to_have_text(re.compile(r"^1 of \d+$"))
    shown = [page.locator(f"#{plane}-where") for plane in ("sagittal", "coronal", "axial")]
    assert [one.inner_text() for one in reversed(shown)] != before
    # The row says where it is, to the millimetre: "R 94, A 103, S 95".
    for one, said in zip(shown, page.locator("#places .row.chosen").get_attribute("title").split(", ")):
        side, value = said.split()
        expect(one).to_have_text(re.compile(rf"^{side} "))
        assert abs(numbers(one.inner_text())[0] - float(value)) <= 1.01
    after(page, page.locator("#overlay-errors").click)
    region = page.locator("#places .row.chosen").inner_text().split()[1]
    expect(page.locator(f"#errors-{region}")).to_have_class(re.compile("on"))
    after(page, lambda: page.locator("#error-opacity").press("End"))
    invented = (230 / 255, 159 / 255, 0)
    assert sum(count(page, view, invented, 3) for view in SLICES) > 300
    keep(page, "review-browser-errors")
    after(page, page.locator("#next-place").click)
    expect(page.locator("#place-text")).to_have_text(re.compile(r"^2 of \d+$"))


def test_a_reload_loses_nothing(page):
    page.click("#verdict-minor")
    page.fill("#comment", COMMENT)
    page.fill("#reader", "AB")
    kept = (
        "#place-text",
        "#axial-where",
        "#coronal-where",
        "#sagittal-where",
        "#figures",
        "#predictions",
        "#case-name",
    )
    page.wait_for_timeout(500)
    before = [page.inner_text(one) for one in kept]
    page.reload()
    settled(page)
    assert [page.inner_text(one) for one in kept] == before
    expect(page.locator("#comment")).to_have_value(COMMENT)
    expect(page.locator("#reader")).to_have_value("AB")
    expect(page.locator("#verdict-minor")).to_have_class(re.compile(r"\bon\b"))
    expect(page.locator("#overlay-errors")).to_have_class(re.compile(r"\bon\b"))


def test_a_full_disk_is_told_and_nothing_typed_is_lost(page, place):
    place.verdicts.unlink()
    place.verdicts.symlink_to("/dev/full")
    page.click("#save-verdict")
    expect(page.locator("#verdict-problem")).to_contain_text("No space left")
    keep(page, "review-browser-full-disk")
    expect(page.locator("#comment")).to_have_value(COMMENT)
    expect(page.locator("#verdict-minor")).to_have_class(re.compile(r"\bon\b"))
    expect(page.locator("#done")).to_have_text("0 of 2")
    place.verdicts.unlink()
    place.verdicts.symlink_to(place.real)


def test_a_verdict_is_written_and_shown_after_a_reload(page, place):
    page.click("#save-verdict")
    expect(page.locator("#verdict-said")).to_contain_text("minor edits by AB")
    (given,) = read_verdicts(place.real)
    assert (given.case, given.prediction, given.verdict) == ("sample", "T1Gd+FLAIR", "minor edits")
    assert (given.comment, given.reader) == (COMMENT, "AB")
    assert 0 < given.seconds < 3600
    page.reload()
    expect(page.locator("#verdict-said")).to_contain_text(COMMENT)
    expect(page.locator("#verdict-problem")).to_have_count(0)
    expect(page.locator("#done")).to_have_text("1 of 2")
    expect(page.locator("#comment")).to_have_value("")
    settled(page)


def test_a_second_tab_shows_the_same_and_does_not_spoil_the_first(page, context, server):
    other = context.new_page()
    other.set_viewport_size({"width": 1150, "height": 700})
    other.goto(server.url.partition("?")[0])  # the cookie is enough
    settled(other)
    expect(other.locator("#place-text")).to_have_text(page.inner_text("#place-text"))
    other.fill("#comment", "from the second")
    expect(page.locator("#comment")).to_have_value("from the second")
    other.click("#next-place")
    expect(page.locator("#place-text")).to_have_text(re.compile(r"^3 of "))
    expect(page.locator("#axial-where")).to_have_text(other.inner_text("#axial-where"))
    other.close()
    page.bring_to_front()
    page.evaluate("window.dispatchEvent(new Event('focus'))")  # headless pages are never without it
    settled(page)  # the pictures have this page's size again


def test_the_result_is_saved_on_request(page, place):
    page.locator("#predictions").get_by_role("button", name="Save").click()
    expect(page.locator("#saved-said")).to_contain_text("sample.seg.nrrd")
    path = place.folder / "out" / "results" / "T1Gd+FLAIR" / "sample.seg.nrrd"
    header = path.read_bytes()[:4000]
    assert f"{METADATA_PREFIX}sequences:=T1Gd+FLAIR".encode() in header


def test_the_next_case_has_no_ground_truth_and_the_way_back_finds_everything(page):
    page.click("#next")
    expect(page.locator("#case-name")).to_have_text("second")
    expect(page.locator("#no-predictions")).to_be_visible()
    expect(page.locator("#next-place")).to_have_count(0)
    expect(page.locator("#overlay-errors")).to_be_disabled()
    expect(page.locator("#save-verdict")).to_be_disabled()
    settled(page)
    page.click("#previous")
    expect(page.locator("#case-name")).to_have_text("sample")
    expect(page.locator("#predictions .row.chosen")).to_contain_text("T1Gd+FLAIR")
    expect(page.locator("#comment")).to_have_value("from the second")
    page.click("#next-open")
    expect(page.locator("#case-name")).to_have_text("second")
    page.click("#previous")
    expect(page.locator("#figures")).to_be_visible()
    settled(page)


def test_a_killed_server_is_told_keeps_what_was_typed_and_what_was_saved(page, context, server, place):
    server.kill()
    expect(page.locator("#server-gone")).to_contain_text("does not answer any more")
    expect(page.locator("#unsaved")).to_have_value("from the second")
    keep(page, "review-browser-gone")
    again = start(place, "second")
    try:
        other = context.new_page()
        other.goto(again.url)
        settled(other)
        expect(other.locator("#done")).to_have_text("1 of 2")
        expect(other.locator("#case-name")).to_have_text("second")  # the first without a verdict
        other.close()
    finally:
        assert again.end() == 0, Path(place.folder / "second.log").read_text()
