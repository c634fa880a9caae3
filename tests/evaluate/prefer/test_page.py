"""The page in a real browser: twenty votes, the server killed in the middle, a second rater, the ranking."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from svdcli.evaluate.prefer.exchange import export_study, import_votes
from svdcli.evaluate.prefer.study import plan_study
from svdcli.evaluate.prefer.votes import VoteStore

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))),
    None,
)
# The page waits a second before it takes an answer; its clock is made to run fast.
HURRY = "const now = performance.now.bind(performance); performance.now = () => 40 * now();"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium, or a skip where there is none."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed on this machine, so the page is not tested in a browser")
    api = pytest.importorskip(
        "playwright.sync_api", reason="the package playwright is absent, so no browser is driven"
    )
    with api.sync_playwright() as play:
        flags = [
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--autoplay-policy=no-user-gesture-required",
        ]
        chromium = play.chromium.launch(executable_path=CHROMIUM, headless=True, args=flags)
        yield chromium
        chromium.close()


class Served:
    """`svd eval prefer serve`, as a person runs it."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        command = [
            sys.executable,
            "-m",
            "svdcli",
            "eval",
            "prefer",
            "serve",
            str(folder),
            "--port",
            str(port),
        ]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        found = re.search(r"http://[^ ]*:(\d+)/", self.process.stderr.readline())
        assert found, "the server did not say where it is"
        self.address, self.port = found[0], int(found[1])

    def end(self, how: signal.Signals) -> tuple[int, str]:
        self.process.send_signal(how)
        stdout, _ = self.process.communicate(timeout=60)
        return self.process.returncode, stdout


def enter(browser: Any, address: str, rater: str) -> Any:
    page = browser.new_context(viewport={"width": 1280, "height": 760}).new_page()
    page.set_default_timeout(10_000)
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.add_init_script(HURRY)
    page.goto(address)
    page.fill("#rater", rater)
    page.click("#door button")
    return page


def ready(page: Any, count: int) -> None:
    """Wait until `count` votes are kept and the next question can be answered."""
    page.wait_for_selector(f"body[data-ready='{count}']")
    page.wait_for_timeout(60)


def answer(page: Any, count: int, key: str) -> None:
    """Wait for the `count`th question and answer it."""
    ready(page, count)
    page.keyboard.press(key)


def test_twenty_votes_with_a_kill_in_the_middle(
    browser: Any, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "study"
    planned = plan_study(folders, folder, votes=2, title="Squares")
    assert len(planned.comparisons) == 20
    served = Served(folder)
    page = enter(browser, served.address, "ann")
    for count in range(9):
        answer(page, count, "ArrowLeft")
    ready(page, 9)
    state = page.evaluate(
        "videos.map(v => ({width: v.videoWidth, error: v.error && v.error.message, muted: v.muted}))"
    )
    assert state == [{"width": 64, "error": None, "muted": True}] * 2
    assert "secret" not in page.content()
    if path := os.environ.get("SVD_TEST_PICTURES"):
        page.screenshot(path=f"{path}/prefer.png")

    served.end(signal.SIGKILL)
    page.keyboard.press("ArrowRight")  # into the void: the page keeps the vote until somebody takes it
    page.wait_for_selector("#problem:has-text('Not kept yet')")
    served = Served(folder, served.port)
    ready(page, 10)
    page.close()

    page = enter(browser, served.address, "ann")  # another day: the same name goes on
    for count, key in enumerate(
        ["ArrowDown", "b", "2", "1", "0", "ArrowRight", "ArrowLeft", "ArrowLeft"], 10
    ):
        answer(page, count, key)
    ready(page, 18)
    page.click("#left")
    answer(page, 19, "ArrowRight")
    page.wait_for_selector("#end h1")

    other = enter(browser, served.address, "bob")
    for count in range(3):
        answer(other, count, "ArrowLeft")
    ready(other, 3)
    assert page.problems == other.problems == []
    code, told = served.end(signal.SIGINT)
    assert code == 0 and told.startswith("23 votes, 14 of them new")

    store = VoteStore(folder, planned)
    votes = store.votes()
    store.close()
    mine = [v for v in votes if v.rater == "ann"]
    assert len(mine) == 20 and len({v.comparison for v in mine}) == 20
    said = [v.choice for v in mine]
    assert said[:9] == ["left"] * 9 and said[9] == "right" and said[10:14] == ["tie", "bad", "right", "left"]
    ranked = subprocess.run(
        [sys.executable, "-m", "svdcli", "eval", "prefer", "rank", str(folder), "--json", "--keep-all"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    quality = json.loads(ranked.stdout)["axes"]["quality"]
    assert {row["model"] for row in quality["models"]} == set(folders)
    assert (
        quality["num_votes"]
        + 2
        + sum(v.comparison in {c.id for c in planned.checks("quality")} for v in votes[20:])
        == 23
    )


def test_the_exported_page_asks_by_itself_and_saves_what_import_reads(
    browser: Any, folders: dict[str, Path], tmp_path: Path
) -> None:
    two = {name: folders[name] for name in ("secret-one", "secret-two")}
    planned = plan_study(two, tmp_path / "study", votes=1)
    export_study(planned, tmp_path / "study", tmp_path / "out")
    page = enter(browser, (tmp_path / "out" / "index.html").as_uri(), "cid, by file")
    for count in range(8):
        answer(page, count, "ArrowLeft")
    page.wait_for_selector("#save:visible")
    with page.expect_download() as download:
        page.click("#save")
    download.value.save_as(tmp_path / "votes.csv")
    store = VoteStore(tmp_path / "study", planned)
    assert import_votes(store, tmp_path / "votes.csv") == 8
    assert {(v.rater, v.choice) for v in store.votes()} == {("cid, by file", "left")}
    store.close()
    assert page.problems == []
