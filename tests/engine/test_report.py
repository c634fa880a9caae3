"""The page on a run: whole, readable by itself, true to what the run wrote, finished or not."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from svdcli.engine import report
from svdcli.engine.report import read_metrics, write_report
from svdcli.errors import InputError
from svdcli.io.curves import Line, chart, smoothed, thinned
from svdcli.io.video import write_video

SVG = "{http://www.w3.org/2000/svg}"


def polylines(svg: str) -> list[list[tuple[float, float]]]:
    found = ElementTree.fromstring(svg).iter(f"{SVG}polyline")
    return [[(float(x), float(y)) for x, y in (p.split(",") for p in line.get("points", "").split())]
            for line in found]  # fmt: skip


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


# ---- curves --------------------------------------------------------------------------------------------


def test_points_lie_where_the_axis_says() -> None:
    svg = chart("a & b", [Line("one", [(0, 1.0), (50, 2.0), (100, 3.0)])])
    (line,) = polylines(svg)
    (x0, y0), (x1, y1), (x2, y2) = line
    assert (
        x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and y0 - y1 == pytest.approx(y1 - y2, abs=0.2) and y2 < y0
    )
    root = ElementTree.fromstring(svg)
    ticks = {
        e.text: float(e.get("y", 0)) - 4 for e in root.iter(f"{SVG}text") if e.get("text-anchor") == "end"
    }
    assert ticks["1"] == pytest.approx(y0, abs=0.2) and ticks["3"] == pytest.approx(y2, abs=0.2)
    assert "a & b" in texts(svg) and "one 3" in texts(svg)


def test_a_wide_span_is_logarithmic_unless_forbidden() -> None:
    points = [(0, 0.01), (1, 0.1), (2, 1.0)]
    (line,) = polylines(chart("loss", [Line("", points)]))
    assert line[0][1] - line[1][1] == pytest.approx(line[1][1] - line[2][1], abs=0.2)
    assert "loss (log)" in texts(chart("loss", [Line("", points)]))
    (line,) = polylines(chart("loss", [Line("", points)], log=False))
    assert line[0][1] - line[1][1] < 0.2 * (line[1][1] - line[2][1])


@pytest.mark.parametrize(
    "points", [[(1, 0.5)], [(1, 0.0), (2, 0.0)], [(1, 3.0), (2, 3.0)], [(5, -1e-9), (6, 1e9)]]
)
def test_odd_curves_are_drawn_within_the_picture(points: list[tuple[float, float]]) -> None:
    svg = chart("x", [Line("", points)])
    assert "nan" not in svg and "inf" not in svg
    for element in ElementTree.fromstring(svg).iter(f"{SVG}circle"):
        assert 0 <= float(element.get("cx", -1)) <= 560 and 0 <= float(element.get("cy", -1)) <= 250


def test_what_is_not_finite_is_left_out() -> None:
    svg = chart("x", [Line("", [(1, 1.0), (2, float("nan")), (3, float("inf")), (4, 2.0)])])
    assert [len(line) for line in polylines(svg)] == [2]
    assert chart("x", [Line("", [(1, float("nan"))])]) == "" == chart("x", [])


def test_smoothing_keeps_lines_and_thinning_keeps_spikes() -> None:
    line = [(step, 2.0 * step + 1) for step in range(1000)]
    middle = smoothed(line)[100:-100]
    assert [y for _, y in middle] == pytest.approx([y for _, y in line[100:-100]])
    noise = np.random.default_rng(0).normal(0, 1, 1000)
    ends = [y for _, y in smoothed(list(enumerate(noise)))]
    assert max(map(abs, ends)) < 1.2 and np.std(ends) < 0.35
    spiky = [(step, 0.0) for step in range(100_000)]
    spiky[77_777] = (77_777, 9.0)
    few = thinned(spiky)
    assert len(few) <= 402 and (77_777, 9.0) in few and [x for x, _ in few] == sorted(x for x, _ in few)


# ---- the page ------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Tags that are open, and what the page fetches from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that stopped at step 40 of 100, with two sample videos."""
    folder = tmp_path / "my run"
    (folder / "samples").mkdir(parents=True)
    rows = []
    for step in range(1, 41):
        rows += [f"{step},loss,{1 / step:.6g}", f"{step},grad_norm,2", f"{step},lr,{step * 1e-5:.6g}",
                 f"{step},seconds,0.5", f"{step},examples_per_second,4", f"{step},memory_gib,1.5"]  # fmt: skip
        if step % 20 == 0:
            rows += [f"{step},held_out_loss_{sigma},{sigma / step:.6g}" for sigma in (20.0, 0.2)]
            rows += [f"{step},held_out_loss,0.3", f"{step},corrupt_clips,7"]
    (folder / "metrics.csv").write_text("\n".join(rows) + "\n41,lo")
    tree = {"task": {"kind": "i2v", "start": None}, "data": {"source": "<b>"}, "run": {"num_steps": 100}}
    (folder / "recipe.json").write_text(json.dumps(tree))
    session = {"step": 0, "time": "2026-01-01T00:00:00+00:00", "device": "cpu", "devices": 1,
               "notes": ["3 videos; 2 could not be read"], "versions": {"torch": "9.9"}}  # fmt: skip
    (folder / "run.json").write_text(json.dumps([session]))
    for step in (20, 40):
        frames = np.full((4, 16, 16, 3), step, np.uint8)
        write_video(folder / "samples" / f"step-{step:06d}.mp4", frames, 8.0, {}, "mp4")
    return folder


def test_the_page_of_an_unfinished_run(run: Path) -> None:
    facts = write_report(run)
    html = (run / "report.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(html)
    assert "script" not in page.tags and page.tags.count("svg") == 8 and page.tags.count("video") == 2
    assert (facts["step"], facts["num_steps"], facts["done"], facts["num_samples"]) == (40, 100, False, 2)
    assert "step 40 of 100; 20 seconds of training, about 30 seconds left" in html
    videos = [source for source in page.sources if source.startswith("data:video/mp4;base64,")]
    newest = base64.b64decode(videos[0].partition(",")[2])
    assert newest == (run / "samples" / "step-000040.mp4").read_bytes()
    assert f"svd train &#x27;{run}&#x27;" in html  # as a shell takes a path with a space
    for told in (
        "corrupt clips",
        "2 could not be read",
        "torch 9.9",
        "&lt;b&gt;",
        "σ 0.2",
        "examples a second",
    ):
        assert told in html, told
    assert "<b>" not in html and "start" not in re.sub("started in", "", html[html.index("Recipe") :])
    for svg in re.findall("<svg.*?</svg>", html, re.DOTALL):
        ElementTree.fromstring(svg)


def test_bins_are_in_the_order_of_sigma_and_the_mean_has_its_own_chart(run: Path) -> None:
    drawn = report.charts(read_metrics(run))
    by_title = {texts(svg)[0]: texts(svg) for svg in drawn}
    bins = by_title["held-out loss by σ (log)"]
    assert [t.split()[1] for t in bins if t.startswith("σ")] == ["0.2", "20.0"]
    assert "held out loss" in by_title and "learning rate" in by_title


def test_videos_beyond_the_room_are_linked_and_many_are_thinned(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = (run / "samples" / "step-000020.mp4").read_bytes()
    for step in range(60, 500, 20):
        (run / "samples" / f"step-{step:06d}.mp4").write_bytes(one)
    monkeypatch.setattr(report, "MOST_EMBEDDED", len(one) + 10)
    assert write_report(run)["num_samples"] == 24
    html = (run / "report.html").read_text(encoding="utf-8")
    assert html.count("<video") == 8 and html.count("data:video") == 1
    assert "step 480 " in html and "step 20 " in html
    assert "src='samples/step-000020.mp4'" in html


def test_metrics_alone_make_a_page(run: Path) -> None:
    for name in ("recipe.json", "run.json"):
        (run / name).write_text("{")
    facts = write_report(run)
    assert facts["num_steps"] == 40 and facts["figures"]["loss"] == pytest.approx(1 / 40)
    html = (run / "report.html").read_text(encoding="utf-8")
    assert "recipe.json is missing" in html and "Not recorded" in html


def test_a_folder_without_a_run_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="metrics.csv cannot be read"):
        write_report(tmp_path)
