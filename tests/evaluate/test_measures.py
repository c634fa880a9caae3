"""Measures of one clip on clips whose answer is known; the response to motion; comparisons and thresholds."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from svdcli.data.camera import move
from svdcli.data.motion import MotionCalibration
from svdcli.errors import InputError, UsageError
from svdcli.evaluate.compare import compare_models, deltas, figures, write_page
from svdcli.evaluate.frames import ROUNDED, psnr
from svdcli.evaluate.measures import (
    MEASURES,
    Seen,
    colour_drift,
    dynamic_degree,
    find_picture,
    measure_clip,
    measure_clips,
    sharpness_kept,
    summarise,
    temporal_flickering,
)
from svdcli.evaluate.motion_response import Asked, motion_response, spearman
from svdcli.evaluate.results import Threshold, failures, save_result
from svdcli.evaluate.videos import Clip, Manifested, with_manifests
from svdcli.io.images import write_png
from svdcli.io.manifest import write_manifest
from svdcli.io.video import write_video


def texture(height: int = 96, width: int = 128, seed: int = 0) -> Clip:
    """A picture with detail of several sizes."""
    rng = np.random.default_rng(seed)
    layers = [rng.random((height // s, width // s, 3)).repeat(s, 0).repeat(s, 1) for s in (4, 8, 16)]
    return (np.mean(layers, axis=0) * 255).astype(np.uint8)


def write_model(folder: Path, noise: float, buckets: tuple[int, ...] = (60,), fps: float = 8) -> None:
    """Videos of two pictures at some buckets: zooms whose reach follows the bucket, with noise; sidecars as svd writes them."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(3):
        picture = folder.parent / f"picture{index}.png"
        write_png(picture, texture(seed=index))
        for bucket in buckets:
            frames = move(texture(seed=index), 8, "in", bucket / 600)
            frames = (frames + rng.normal(0, noise, frames.shape)).clip(0, 255).astype(np.uint8)
            name = f"picture{index}-{bucket}"
            write_video(folder / f"{name}.mp4", frames, fps, {}, "mp4")
            facts = {"source": str(picture), "seed": 1, "motion_bucket": bucket, "fps": fps, "fit": "crop"}
            write_manifest(folder / f"{name}.json", facts)


# ---- one clip


def test_a_still_clip_is_steady_and_does_not_move() -> None:
    still = np.repeat(texture()[None], 8, 0)
    row = measure_clip(Seen(still, 8.0, still[0] / 255.0), tuple(MEASURES))
    assert set(row) == set(MEASURES)
    assert row["dynamic_degree"] == row["flicker"] == row["colour_drift"] == 0
    assert max(row["warp_error"], row["motion"]) < 1e-3  # flow of equal frames is rounding
    assert row["temporal_flickering"] == row["sharpness_kept"] == 1
    assert row["first_frame_psnr"] == ROUNDED and row["first_frame_ssim"] == pytest.approx(1)


def test_each_fault_moves_its_own_measure() -> None:
    still = np.repeat(texture()[None], 8, 0)
    brighter = still.copy()
    brighter[1::2] = np.minimum(brighter[1::2].astype(int) + 10, 255)
    assert temporal_flickering(brighter) == pytest.approx(1 - 10 / 255, abs=1e-3)
    fading = (still * np.linspace(1, 0.5, 8)[:, None, None, None]).astype(np.uint8)
    assert colour_drift(fading) == pytest.approx(still.mean() * 0.5 / 255, abs=0.005)
    import cv2

    blurring = np.stack([cv2.GaussianBlur(f, (0, 0), 0.1 + i / 2) for i, f in enumerate(still)])
    assert sharpness_kept(blurring) < 0.5
    assert sharpness_kept(blurring[::-1]) > 2


def test_dynamic_degree_follows_vbenchs_threshold() -> None:
    """Shifts of 2 and of 6 pixels a frame at 96 pixels: the threshold is 6 / 256 * 96 = 2.25."""
    wide = texture(96, 256)
    for step, moves in ((1, 0.0), (5, 1.0)):
        frames = np.stack([wide[:, step * i : step * i + 128] for i in range(10)])
        assert dynamic_degree(frames, 8) == moves
    assert dynamic_degree(wide[None], 8) == 0


def test_what_a_clip_lacks_is_absent_and_never_made_up() -> None:
    short = texture()[None].repeat(2, 0)
    assert set(measure_clip(Seen(short, 8.0), tuple(MEASURES))) == {
        "motion", "dynamic_degree", "temporal_flickering", "warp_error", "colour_drift", "sharpness_kept",
    }  # fmt: skip
    with pytest.raises(UsageError, match="no measure beauty"):
        measure_clip(Seen(short, 8.0), ("beauty",))
    with pytest.raises(InputError, match="not finite"):
        psnr(np.full((4, 4, 3), np.nan), np.zeros((4, 4, 3)))


# ---- many clips


def test_values_are_kept_by_content_and_follow_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path / "model", 0)
    clips, seen = with_manifests(tmp_path / "model"), []
    names = ("first_frame_psnr", "flicker")
    monkeypatch.setattr(
        "svdcli.evaluate.measures.measure_clip", lambda s, n: seen.append(n) or measure_clip(s, n)
    )
    rows, _ = measure_clips(clips, names, {}, tmp_path / "cache")
    assert min(row["first_frame_psnr"] for row in rows.values()) > 25
    again, _ = measure_clips(clips, (*names, "colour_drift"), {}, tmp_path / "cache")
    assert seen == [list(names)] * 3 + [["colour_drift"]] * 3
    assert all(again[path]["flicker"] == row["flicker"] for path, row in rows.items())
    other = {"picture0-60": tmp_path / "picture1.png"}
    assert find_picture(clips[0], other) == other["picture0-60"]
    changed, _ = measure_clips(clips[:1], names, other, tmp_path / "cache")
    assert changed[str(clips[0].path)]["first_frame_psnr"] < 15


def test_unreadable_clips_are_left_out_with_their_reason(tmp_path: Path) -> None:
    write_model(tmp_path / "model", 0)
    (tmp_path / "model" / "bad.mp4").write_bytes(b"nothing")
    rows, left_out = measure_clips(with_manifests(tmp_path / "model"), ("flicker",), {}, None)
    assert len(rows) == 3 and list(left_out) == [str(tmp_path / "model" / "bad.mp4")]
    with pytest.raises(InputError, match="None of 1"):
        measure_clips([Manifested(tmp_path / "model" / "bad.mp4", {})], ("flicker",), {}, None)


def test_one_video_has_a_mean_and_no_interval() -> None:
    found = summarise({"a": {"flicker": 0.5}})["flicker"]
    assert (found["mean"], found["num"]) == (0.5, 1) and math.isnan(found["low"])


# ---- motion


def test_spearman_agrees_with_scipy_with_ties() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, 40), rng.integers(0, 6, 40)
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert spearman([1, 1], [1, 2]) == 0


def test_the_response_is_judged_within_pictures_and_over_all() -> None:
    """Two pictures that obey, one of them far livelier: within 1, pooled less."""
    clips = [Asked(g, b, s * b) for g, s in (("calm", 0.001), ("lively", 0.1)) for b in (20.0, 60.0, 200.0)]
    calibration = MotionCalibration((1.0, 255.0), (0.0, 0.255))
    result = motion_response(clips, calibration)
    assert result["mean_of_spearman"] == result["spearman_of_mean"] == pytest.approx(1)
    assert 0 < result["pooled"] < 0.7
    assert [p["bucket"] for p in result["curve"]] == [20, 60, 200]
    assert result["curve"][0]["asked_score"] == pytest.approx(calibration.score(20))
    exact = [Asked("x", b, calibration.score(b)) for b in (20.0, 200.0)]
    assert motion_response(exact, calibration)["bucket_error"] == pytest.approx(0, abs=1e-6)
    assert not result["uneven"] and motion_response(clips[:-1], calibration)["uneven"]
    with pytest.raises(InputError, match="same motion"):
        motion_response(clips[:1])


# ---- comparisons


def test_models_are_subtracted_pair_by_pair(tmp_path: Path) -> None:
    write_model(tmp_path / "clean", 0, (60, 90))
    write_model(tmp_path / "noisy", 15, (60, 90))
    shutil.copy(tmp_path / "clean" / "picture0-60.mp4", tmp_path / "noisy" / "extra.mp4")
    folders = {"clean": tmp_path / "clean", "noisy": tmp_path / "noisy"}
    result = compare_models(folders, ("flicker", "first_frame_psnr"), {}, None)
    assert result["num_shared"] == 6 and result["lacking"] == ["extra"]
    gap = result["deltas"]["noisy"]["flicker"]
    assert gap["mean"] > 0 and gap["low"] > 0 and gap["better"] == -1
    assert result["deltas"]["noisy"]["first_frame_psnr"]["better"] == -1
    assert figures(result)["noisy"]["flicker"] > figures(result)["clean"]["flicker"]
    assert (
        figures(result | {"fvd": {"clean": {"fvd": 3.0, "kernel_distance": {"value": 1.0}}}})["clean"]["fvd"]
        == 3.0
    )

    write_page(tmp_path / "page.html", result)
    page = (tmp_path / "page.html").read_text()
    assert page.count("<video") == page.count("data:video/mp4;base64,") == 12
    assert "http://" not in page and "https://" not in page and "<script" not in page
    assert "extra" in page and 'class="bad"' in page
    save_result(tmp_path / "result.json", result | {"nothing": float("nan")})
    assert json.loads((tmp_path / "result.json").read_text())["nothing"] is None


def test_names_cannot_break_the_page(tmp_path: Path) -> None:
    write_model(tmp_path / "a", 0)
    write_model(tmp_path / "<b onload=x>", 0)
    folders = {path.name: path for path in (tmp_path / "a", tmp_path / "<b onload=x>")}
    write_page(tmp_path / "page.html", compare_models(folders, ("flicker",), {}, None))
    assert "<b onload" not in (tmp_path / "page.html").read_text()


def test_equal_models_have_no_gap() -> None:
    rows = {str(i): {"flicker": float(i), "motion": 1.0} for i in range(9)}
    found = deltas(rows, rows)
    assert found["flicker"] == {"mean": 0, "low": 0, "high": 0, "num": 9, "better": 0}
    assert deltas(rows, {"0": {"flicker": 1.0}}) == {}


def test_few_pairs_prove_nothing() -> None:
    rows = {str(i): {"flicker": float(i)} for i in range(5)}
    found = deltas(rows, {name: {"flicker": row["flicker"] + 1} for name, row in rows.items()})["flicker"]
    assert (found["mean"], found["low"], found["better"]) == (1, 1, 0)


@pytest.mark.parametrize(
    ("text", "fails"),
    [
        ("fvd>300", ["b"]),
        ("fvd >= 100", ["a", "b"]),
        ("a:fvd>300", []),
        ("flicker<1e-3", ["a"]),
        ("b:flicker<=0.5", ["b"]),
    ],
)
def test_thresholds(text: str, fails: list[str]) -> None:
    values = {"a": {"fvd": 100.0, "flicker": 0.0}, "b": {"fvd": 301.0, "flicker": 0.5}}
    assert [
        sentence.split(": ")[-1].split()[0] for sentence in failures([Threshold.parse(text)], values)
    ] == fails


def test_a_threshold_that_cannot_be_tested_does_not_pass() -> None:
    values = {"a": {"flicker": math.nan}}
    assert failures([Threshold.parse("flicker>1")], values)
    for text in ("fvd>300", "c:flicker>1"):
        with pytest.raises(UsageError):
            failures([Threshold.parse(text)], values)
    for text in ("fvd", "fvd>", "fvd>x", "fvd==3", ">3", "fvd>1e999"):
        with pytest.raises(UsageError):
            Threshold.parse(text)
