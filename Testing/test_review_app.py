"""The browser application without a browser: who may talk to it, which files it opens, what it keeps."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import SHAPE, brain_image, image_of, write_case
from MSTKDSegmentLib import cli
from MSTKDSegmentLib.errors import InputError, MSTKDError, OutputError
from MSTKDSegmentLib.review.label_maps import read_label_map
from MSTKDSegmentLib.review.verdicts import Verdict, read_verdicts
from MSTKDSegmentLib.review.worklist import WorkItem, read_worklist
from MSTKDSegmentLib.review_app import access, command, judging, rows
from MSTKDSegmentLib.review_app.command import ReviewRequest, open_session
from MSTKDSegmentLib.review_app.segmenting import Engine, Run
from MSTKDSegmentLib.review_app.session import ReviewSession
from MSTKDSegmentLib.review_app.stopwatch import Stopwatch

TRUTH = np.zeros(SHAPE, np.uint8)
TRUTH[10:20, 10:20, 10:20] = 2
TRUTH[12:16, 12:16, 12:16] = 3
SHIFTED = np.roll(TRUTH, 2, axis=2)


@pytest.fixture
def worklist(tmp_path) -> Path:
    """Two cases with ground truth in cases/, and predictions of both in runs/first and of one in runs/second."""
    for name in ("Doe", "Roe"):
        write_case(tmp_path / "cases" / name, t1gd=1, flair=2)
        sitk.WriteImage(image_of(TRUTH), str(tmp_path / "cases" / name / "seg.nii.gz"))
        (tmp_path / "runs" / "first").mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(image_of(SHIFTED), str(tmp_path / "runs" / "first" / f"{name}.nii.gz"))
    (tmp_path / "runs" / "second").mkdir()
    sitk.WriteImage(image_of(TRUTH), str(tmp_path / "runs" / "second" / "Doe.nii.gz"))
    return tmp_path


def session_of(folder: Path, **more) -> ReviewSession:
    predictions = [folder / "runs" / "first", folder / "runs" / "second"]
    return open_session(ReviewRequest(folder / "cases", predictions, verdicts=folder / "out" / "verdicts.csv", **more))


# --- who may talk to it -----------------------------------------------------------------------------------------------


def answers(host: str, token, requests) -> list[tuple[int, dict, str]]:
    """(status, headers, text) of each (path, headers) asked of a small server behind the guard of `host`."""
    pytest.importorskip("aiohttp", reason="the extra `review` is not installed")
    from aiohttp import web
    from aiohttp.test_utils import TestClient, TestServer
    from MSTKDSegmentLib.review_app.security import Guard

    async def page(_request):
        return web.Response(text="patients")

    async def socket(request):
        stream = web.WebSocketResponse()
        await stream.prepare(request)
        await stream.close()
        return stream

    async def ask() -> list:
        app = web.Application(middlewares=[Guard(host, token).middleware])
        app.router.add_get("/ws", socket)
        app.router.add_post("/paraview/", page)
        app.router.add_get("/{name:(index.html|assets/x.js)?}", page)
        found = []
        async with TestClient(TestServer(app)) as client:
            for path, given in requests:
                method = "POST" if path.startswith("/paraview") else "GET"
                client.session.cookie_jar.clear()
                headers = {key: value.replace("PORT", str(client.port)) for key, value in given.items()}
                async with client.request(method, path, headers=headers, allow_redirects=False) as answer:
                    text = "" if answer.status == 101 else await answer.text()
                    found.append((answer.status, dict(answer.headers), text))
        return found

    return asyncio.run(ask())


UPGRADE = {
    "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}  # fmt: skip
EVERYTHING = (("/", {}), ("/index.html", {}), ("/assets/x.js", {}), ("/paraview/", {}), ("/ws", UPGRADE))


def test_without_a_token_nothing_is_given_away():
    for status, headers, text in answers("0.0.0.0", "right", EVERYTHING):
        assert status == 403
        assert "patients" not in text
        assert "Set-Cookie" not in headers


@pytest.mark.parametrize("wrong", ["", "wrong", "rightt", "righ", "r\u00ecght"])
def test_a_wrong_token_is_refused_however_it_comes(wrong):
    plain = wrong.encode("ascii", "ignore").decode()
    asked = [(f"/?token={wrong}", {}), ("/index.html", {"Cookie": f"mstkd_review_PORT={plain}"}), ("/", {})]
    assert [status for status, *_ in answers("0.0.0.0", "right", asked)] == [403, 403, 403]
    assert answers("0.0.0.0", "right", [("/index.html", {"Cookie": "mstkd_review_PORT=right"})])[0][0] == 200


def test_the_right_token_becomes_a_cookie_that_scripts_and_other_sites_never_see():
    ((status, headers, _text),) = answers("0.0.0.0", "right", [("/?token=right", {})])
    assert (status, headers["Location"]) == (302, "/index.html")
    cookie = headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie


def test_the_cookie_opens_pages_assets_and_the_socket():
    pytest.importorskip("aiohttp", reason="the extra `review` is not installed")
    from aiohttp import web
    from aiohttp.test_utils import TestClient, TestServer
    from MSTKDSegmentLib.review_app.security import Guard

    async def page(_request):
        return web.Response(text="patients")

    async def socket(request):
        stream = web.WebSocketResponse()
        await stream.prepare(request)
        await stream.send_str("picture")
        return stream

    async def ask() -> None:
        app = web.Application(middlewares=[Guard("0.0.0.0", "right").middleware])
        app.router.add_get("/ws", socket)
        app.router.add_get("/{name:.*}", page)
        from aiohttp import CookieJar

        async with TestClient(TestServer(app), cookie_jar=CookieJar(unsafe=True)) as client:
            async with client.get("/assets/x.js") as answer:
                assert answer.status == 403
            async with client.get("/?token=right") as answer:  # follows to /index.html with the cookie
                assert (answer.status, await answer.text()) == (200, "patients")
                assert "token" not in str(answer.url)
            async with client.get("/assets/x.js") as answer:
                assert answer.status == 200
            async with client.ws_connect("/ws") as stream:
                assert await stream.receive_str() == "picture"

    asyncio.run(ask())


def test_here_no_token_is_needed_but_foreign_names_and_sites_are_refused():
    from_elsewhere = [
        ("/", {"Host": "evil.example"}),  # a name that was made to lead here
        ("/ws", {**UPGRADE, "Host": "evil.example:80"}),
        ("/ws", {**UPGRADE, "Origin": "http://evil.example"}),
        ("/", {"Origin": "null"}),
        ("/", {"Host": "127.0.0.1:1", "Origin": "http://127.0.0.1:2"}),
    ]
    assert [status for status, *_ in answers("127.0.0.1", None, from_elsewhere)] == [421, 421, 403, 403, 403]
    from_here = [("/", {}), ("/", {"Host": "localhost:8"}), ("/", {"Host": "[::1]:8"})]
    found = answers("127.0.0.1", None, [*from_here, ("/", {"Host": "localhost:8", "Origin": "http://localhost:8"})])
    assert [status for status, *_ in found] == [200] * 4
    assert "frame-ancestors 'none'" in found[0][1]["Content-Security-Policy"]


def test_the_token_is_compared_in_constant_time(monkeypatch):
    pytest.importorskip("aiohttp", reason="the extra `review` is not installed")
    from MSTKDSegmentLib.review_app import security

    asked = []
    monkeypatch.setattr(security.hmac, "compare_digest", lambda a, b: asked.append((a, b)) or a == b)
    assert security.same("x", "right") is False
    assert security.same("right", "right") is True
    assert asked == [(b"x", b"right"), (b"right", b"right")]
    assert security.same(None, "right") is False


def test_a_secret_that_begins_like_an_option_starts_the_server_too(monkeypatch):
    pytest.importorskip("aiohttp", reason="the extra `review` is not installed")
    trame_arguments = pytest.importorskip("wslink.server", reason="the extra `review` is not installed").add_arguments
    from MSTKDSegmentLib.review_app import server

    heard = []

    def start(**_):
        parser = argparse.ArgumentParser()
        trame_arguments(parser)
        heard.append(parser.parse_args(sys.argv[1:]).authKey)

    events = {f"on_{name}": set() for name in ("server_bind", "server_ready", "client_connected", "client_exited")}
    app = SimpleNamespace(ctrl=SimpleNamespace(**events), server=SimpleNamespace(start=start), runs=Closing())
    monkeypatch.setattr(server.secrets, "token_urlsafe", lambda _: "-x-like--an-option")
    server.serve(app, server.Address("127.0.0.1", 0, None))
    assert heard == ["-x-like--an-option"]
    assert app.runs.closed


class Closing:
    closed = False

    def close(self):
        self.closed = True


def test_only_this_computer_goes_without_a_token():
    pytest.importorskip("aiohttp", reason="the extra `review` is not installed")
    from MSTKDSegmentLib.review_app.security import new_token

    assert [new_token(host) for host in ("127.0.0.1", "localhost", "::1", "[::1]")] == [None] * 4
    tokens = {new_token("127.0.0.1", wanted=True), *(new_token(host) for host in ("0.0.0.0", "10.0.0.5", "::", ""))}
    assert len(tokens) == 5
    assert all(len(token) >= 40 for token in tokens)


# --- which files it opens ---------------------------------------------------------------------------------------------


def test_links_out_of_the_given_folders_are_not_followed(tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "secret.nii.gz").write_bytes(b"x")
    (inside / "own.nii.gz").write_bytes(b"x")
    (inside / "link.nii.gz").symlink_to(outside / "secret.nii.gz")
    (inside / "loop").symlink_to(inside / "loop")
    (inside / "series").mkdir()
    (inside / "series" / "1.dcm").symlink_to(outside / "secret.nii.gz")
    allowed = access.roots(inside)
    assert access.may_open(inside / "own.nii.gz", allowed)
    for path in (
        inside / "link.nii.gz",
        inside / ".." / "outside" / "secret.nii.gz",
        inside / "series",
        inside / "loop",
    ):
        assert not access.may_open(path, allowed), path
    assert not access.may_open(tmp_path / "inside2", allowed)  # begins with the same letters
    assert access.may_open(inside / "link.nii.gz", access.roots(inside, [outside]))


HEADERS = {
    "t2.mhd": "ObjectType = Image\nNDims = 3\nDimSize = 8 8 8\nElementType = MET_UCHAR\nElementDataFile = {}\n",
    "t2.mha": "NDims = 3\nDimSize = 8 8 8\nElementType = MET_UCHAR\nElementDataFile={}\n",
    "t2.nhdr": "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 8 8 8\nencoding: raw\ndata file: {}\n\n",
    "t2.nrrd": "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 8 8 8\nencoding: raw\nDatafile: {}\n\n",
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_point_out_of_the_given_folders_are_not_followed(name, tmp_path):
    for folder in ("given", "secret"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.raw").write_bytes(bytes(512))
    (tmp_path / "given" / "link.raw").symlink_to(tmp_path / "secret" / "x.raw")
    allowed = access.roots(tmp_path / "given")
    header = tmp_path / "given" / name
    outside = ("../secret/x.raw", str(tmp_path / "secret" / "x.raw"), "link.raw", "../secret/x%d.raw 1 2 1", "LIST")
    for where, allowed_to in (("x.raw", True), *((where, False) for where in outside)):
        header.write_text(HEADERS[name].format(where))
        assert access.may_open(header, allowed) is allowed_to, where
    # A header that hides its last line behind thousands of others is not read to its end, and not opened.
    first, last = HEADERS[name].format("../secret/x.raw").rstrip("\n").rsplit("\n", 1)
    header.write_text("\n".join([first, *["# x"] * 2000, last, "", ""]))
    assert not access.may_open(header, allowed)


def test_files_that_hold_their_voxels_themselves_are_opened(tmp_path):
    for ending in (".nrrd", ".mha", ".nii.gz"):
        path = tmp_path / f"t2{ending}"
        sitk.WriteImage(brain_image(1), str(path))
        assert access.may_open(path, access.roots(tmp_path))


def test_a_case_with_a_file_outside_says_so_and_shows_the_rest(tmp_path):
    paths = write_case(tmp_path / "cases" / "Doe", t1gd=1, flair=2)
    (tmp_path / "elsewhere").mkdir()
    paths["flair"].rename(tmp_path / "elsewhere" / "flair.nii.gz")
    paths["flair"].symlink_to(tmp_path / "elsewhere" / "flair.nii.gz")
    request = ReviewRequest(tmp_path / "cases", verdicts=tmp_path / "v.csv")
    case = open_session(request).open(0)
    assert list(case.volumes) == ["T1Gd"]
    assert "flair.nii.gz: lies outside the folders given at the start" in case.notices[0]
    allowed = ReviewRequest(tmp_path / "cases", allowed=[tmp_path / "elsewhere"], verdicts=tmp_path / "v.csv")
    assert sorted(open_session(allowed).open(0).volumes) == ["FLAIR", "T1Gd"]


def test_a_link_that_is_bent_after_the_start_is_refused_when_it_is_opened(tmp_path):
    paths = write_case(tmp_path / "cases" / "Doe", t1gd=1)
    session = open_session(ReviewRequest(tmp_path / "cases", verdicts=tmp_path / "v.csv"))
    moved = tmp_path / "moved.nii.gz"
    paths["t1gd"].rename(moved)
    paths["t1gd"].symlink_to(moved)
    case = session.open(0)
    assert not case.volumes
    assert "lies outside" in case.notices[0]


# --- what it keeps ----------------------------------------------------------------------------------------------------


def test_a_case_opens_with_its_volumes_truth_and_predictions(worklist):
    case = session_of(worklist).open(0)
    assert (case.name, sorted(case.volumes), list(case.predictions)) == ("Doe", ["FLAIR", "T1Gd"], ["first", "second"])
    assert np.array_equal(case.truth.labels, TRUTH)


@pytest.mark.parametrize("index", [-1, 2])
def test_a_case_that_there_is_not_is_refused(worklist, index):
    with pytest.raises(InputError, match="the worklist has 2"):
        session_of(worklist).open(index)


def test_figures_are_those_of_the_two_masks(worklist):
    session = session_of(worklist)
    case = session.open(0)
    table = {row["name"]: row for row in rows.metric_rows(session.measure(case, "first"))}
    # 10 x 10 x 10 moved by 2: 800 of 1000 in common. 4 x 4 x 4 moved by 2: half.
    assert (table["Dice"]["WT"], table["Dice"]["ET"]) == ("0.800", "0.500")
    assert table["Sensitivity"]["WT"] == "0.800"
    assert table["Truth (ml)"]["WT"] == "8.00"
    assert rows.dice_cells(session.measure(case, "second")) == {"WT": "1.00", "TC": "1.00", "ET": "1.00"}
    places = session.places(case, "first", "volume")
    assert [place.volume_ml for place in places] == sorted((place.volume_ml for place in places), reverse=True)
    assert places[0].volume_ml == pytest.approx(10 * 10 * 2 * 0.008)
    assert {place.volume_ml for place in session.places(case, "first", "distance")} == {p.volume_ml for p in places}
    assert session.places(case, "second", "volume") == []
    shown = rows.place_rows(places)
    assert shown[0]["number"] == 1
    assert shown[0]["ras"] == rows.ras_text(places[0].point_ras)


def test_without_a_ground_truth_predictions_are_compared_with_each_other(worklist):
    (worklist / "cases" / "Doe" / "seg.nii.gz").unlink()
    session = session_of(worklist)
    case = session.open(0)
    table = {row["name"]: row for row in rows.metric_rows(session.measure(case, "second"))}
    assert table["Dice with first"]["WT"] == "0.800"
    assert table["Volume (ml)"]["WT"] == "8.00"
    assert session.places(case, "second", "volume") == []


def test_of_a_mask_of_the_whole_tumour_nothing_else_is_told(worklist):
    (worklist / "cases" / "Doe" / "seg.nii.gz").unlink()
    mask = image_of((TRUTH > 0).astype(np.uint8))
    sitk.WriteImage(mask, str(worklist / "runs" / "first" / "Doe.nii.gz"))
    session = session_of(worklist)
    case = session.open(0)
    table = {row["name"]: row for row in rows.metric_rows(session.measure(case, "first"))}
    assert table["Volume (ml)"] == {"name": "Volume (ml)", "WT": "8.00", "TC": rows.NOTHING, "ET": rows.NOTHING}
    assert table["Dice with second"]["WT"] == "1.000"
    assert table["Dice with second"]["ET"] == rows.NOTHING


def test_names_with_several_blanks_keep_their_verdicts(tmp_path):
    write_case(tmp_path / "cases" / "Doe  J", t1gd=1)
    session = open_session(ReviewRequest(tmp_path / "cases", verdicts=tmp_path / "v.csv"))
    name = session.items[0].name
    session.judge(Verdict(name, "a  b", "accept", 1))
    assert session.verdict(name, "a  b").verdict == "accept"
    assert session.next_open(-1) is None


def test_verdicts_are_in_the_file_and_come_back_with_the_next_start(worklist):
    session = session_of(worklist)
    assert session.next_open(-1) == 0
    comment = 'Rim, "thin"\nsecond line; =1+1'
    session.judge(Verdict("Doe", "first", "minor edits", 61.24, comment, "AB"))
    session.judge(Verdict("Doe", "first", "reject", 5, "", "AB"))
    assert session.next_open(-1) == 1
    assert session.next_open(1) == 1
    again = session_of(worklist)
    assert again.verdict("Doe", "first").verdict == "reject"
    assert again.verdict("Doe", "second") is None
    assert [row["mark"] for row in rows.case_rows(again)] == ["R", ""]
    kept = read_verdicts(worklist / "out" / "verdicts.csv")
    assert (kept[0].seconds, kept[0].comment) == (61.2, 'Rim, "thin" second line; =1+1')
    again.judge(Verdict("Roe", "first", "accept", 1))
    assert again.next_open(0) is None


def test_a_full_disk_is_told_and_the_verdict_is_not_taken_as_given(worklist):
    session = session_of(worklist)
    file = worklist / "out" / "verdicts.csv"
    file.parent.mkdir()
    file.symlink_to("/dev/full")
    with pytest.raises(OutputError, match="No space left"):
        session.judge(Verdict("Doe", "first", "accept", 1, "kept?"))
    assert session.verdict("Doe", "first") is None
    file.unlink()
    session.judge(Verdict("Doe", "first", "accept", 1, "kept"))
    assert [one.comment for one in read_verdicts(file)] == ["kept"]


def test_what_is_made_here_gets_a_name_of_its_own_and_is_written_on_request_only(worklist):
    session = session_of(worklist)
    image = brain_image(1)
    names = [session.add(0, "first", SHIFTED, image, {"input T1Gd": "x"}) for _ in range(2)]
    assert names == ["first (2)", "first (3)"]
    assert list(session.open(0).predictions) == ["first", "second", "first (2)", "first (3)"]
    assert not (worklist / "out").exists()
    path = session.save("Doe", "first (2)")
    assert path == worklist / "out" / "results" / "first (2)" / "Doe.seg.nrrd"
    assert session.save("Doe", "first (2)") == path  # once
    assert np.array_equal(read_label_map(path).labels, SHIFTED)
    # A later start finds it as a set of predictions.
    items = read_worklist(worklist / "cases", [path.parent])
    assert list(items[0].predictions) == ["first (2)"]


def test_nothing_is_ever_written_over(worklist):
    session = session_of(worklist)
    taken = worklist / "out" / "results" / "T1Gd" / "Doe.seg.nrrd"
    taken.parent.mkdir(parents=True)
    taken.write_bytes(b"somebody's work")
    name = session.add(0, "T1Gd", TRUTH, brain_image(1), {})
    assert session.save("Doe", name) == worklist / "out" / "results" / "T1Gd - 2" / "Doe.seg.nrrd"
    assert taken.read_bytes() == b"somebody's work"
    with pytest.raises(InputError, match="no prediction of Doe"):
        session.save("Doe", "second")


class State(dict):
    """trame's state, as far as the verdict's form uses it."""

    __getattr__, __setattr__ = dict.__getitem__, dict.__setitem__


def test_a_verdict_is_booked_on_what_the_reader_saw(worklist):
    """A run that ends between the click and its arrival shows its own result; that must not get the verdict."""
    session = session_of(worklist)
    state = State(judging.START, prediction="first", cases=[])
    case = session.open(0)
    app = SimpleNamespace(session=session, case=case, state=state, tell_predictions=lambda: None)
    form = judging.Judging(app)
    form.enter()
    state.update(verdict="reject", comment="about first")
    assert form.typing
    form.leave()
    state.prediction = "second"  # shown meanwhile
    form.enter()
    form.save("Doe", "first", "reject", "about first", "AB")
    (written,) = read_verdicts(worklist / "out" / "verdicts.csv")
    assert (written.case, written.prediction, written.comment) == ("Doe", "first", "about first")
    state.prediction = "first"
    form.enter()
    assert (state.verdict, state.comment) == ("", "")  # what was saved is no draft any more
    for strange in (("Doe", "third"), ("Nobody", "first"), ("../Doe", "first")):
        form.save(*strange, "accept", "", "")
    assert len(read_verdicts(worklist / "out" / "verdicts.csv")) == 1


def test_time_counts_while_it_runs_only():
    now = [0.0]
    watch = Stopwatch(lambda: now[0])
    now[0] = 5
    assert watch.seconds == 0
    watch.run()
    watch.run()
    now[0] = 8
    watch.pause()
    now[0] = 100
    assert watch.seconds == 3
    watch.run()
    now[0] = 101
    assert watch.seconds == 4
    watch.reset()
    now[0] = 103
    assert watch.seconds == 2


def test_words_and_figures_for_the_page():
    assert rows.ras_text((12.4, -3.0, -40.6)) == "R 12, P 3, I 41"
    assert [rows.clock_text(seconds) for seconds in (0, 59.9, 60, 605)] == ["0:00", "0:59", "1:00", "10:05"]
    given = Verdict("a", "b", "accept", 65, "", "AB", "2026-01-02T03:04:05Z")
    assert rows.verdict_text(given) == "accept by AB, 1:05, 2026-01-02 03:04:05 UTC"
    assert rows.verdict_text(None) == ""
    found = {
        "subsets": [{"subset": "T1", "dice": {"WT": 0.5}}],
        "carried_by": {"WT": {"T1": 0.1, "FLAIR": 0.3}, "TC": {}, "ET": {"T1": -0.1}},
    }
    assert rows.carried_text(found) == "WT: FLAIR (without it -0.30)"
    assert rows.what_if_rows(found)[0]["WT"] == "0.50"


# --- runs of the network ----------------------------------------------------------------------------------------------


def wait_for(run: Run) -> None:
    until = time.monotonic() + 240
    while run.poll():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_segmenting_uses_the_chosen_sequences_only(worklist, random_bundle):
    session = session_of(worklist)
    case = session.open(0)
    run = Run(Engine(sys.executable, "cpu", str(random_bundle)), case, ["FLAIR", "T2"])
    try:
        assert (run.name, run.what_if) == ("FLAIR", False)
        wait_for(run)
        found = run.result()
    finally:
        run.close()
    assert found["labels"].shape == SHAPE
    assert found["provenance"]["sequences"] == "FLAIR"
    assert found["what_if"] is None
    assert found["image"].GetSize() == SHAPE[::-1]
    with pytest.raises(InputError, match="choose at least one"):
        Run(Engine(sys.executable), case, ["T2"])


def test_what_if_runs_every_subset_against_the_ground_truth(worklist, random_bundle):
    case = session_of(worklist).open(0)
    run = Run(Engine(sys.executable, "cpu", str(random_bundle)), case, ["T1Gd", "FLAIR"], what_if=True)
    try:
        wait_for(run)
        found = run.result()["what_if"]
    finally:
        run.close()
    assert [one["subset"] for one in found["subsets"]] == ["T1Gd", "FLAIR", "T1Gd+FLAIR"]
    assert found["against"] == "ground truth"
    assert all(set(one["dice"]) == {"WT", "TC", "ET"} for one in found["subsets"])


def test_a_run_is_ended_at_once(worklist, random_bundle):
    case = session_of(worklist).open(0)
    run = Run(Engine(sys.executable, "cpu", str(random_bundle)), case, ["T1Gd"])
    run.poll()
    start = time.monotonic()
    run.close()
    assert time.monotonic() - start < 10
    assert not run.poll()
    with pytest.raises(MSTKDError):
        run.result()


# --- the command ------------------------------------------------------------------------------------------------------


def test_a_missing_extra_is_said_with_what_to_do(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    write_case(tmp_path / "cases" / "Doe", t1gd=1)
    assert cli.main(["review", str(tmp_path / "cases")]) == 1
    said = capsys.readouterr().err
    assert "pip install '.[review]'" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nowhere"], 3, "no such folder or CSV file"),
        (["cases", "--predictions", "nowhere"], 3, "no such folder of predictions"),
        (["cases", "--allow", "nowhere"], 8, "--allow takes a folder"),
        (["cases", "--verdicts", "other.csv"], 8, "not a table of verdicts"),
        (["cases", "--weights", "nowhere.zip"], 6, "nowhere.zip"),
        (["cases", "--port", "70000"], 2, "is not a port"),
    ],
)
def test_what_cannot_be_used_is_one_line_before_anything_is_served(
    arguments, code, words, tmp_path, monkeypatch, capsys
):
    write_case(tmp_path / "cases" / "Doe", t1gd=1)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "require_extra", lambda: None)
    assert cli.main(["review", *arguments, "--no-browser"]) == code
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_items_inside_are_left_alone(tmp_path):
    item = WorkItem("Doe", {"T1": tmp_path / "t1.nii"}, {"a": tmp_path / "a.nii"}, tmp_path / "seg.nii")
    assert access.within(item, access.roots(tmp_path)) is item
