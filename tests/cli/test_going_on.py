"""`svd sample --continue` and `--motion-mask` through main(): what is written, what the manifest says, how to be wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from svdcli.cli.app import main
from svdcli.io.manifest import read_manifest
from svdcli.io.video import read_video, write_video

Svd = Callable[..., tuple[int, str, str]]


@pytest.fixture
def svd(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    quick_bundle_path: Path,
) -> Svd:
    monkeypatch.chdir(tmp_path)
    frames = np.stack([np.full((32, 48, 3), 40 + 6 * t, np.uint8) for t in range(24)])
    write_video("clip.mp4", frames, 12.0, {}, "mp4")
    Image.new("RGB", (48, 32), "teal").save("cat.png")
    Image.new("RGB", (48, 32), "white").save("mask.png")

    def run(*words: object) -> tuple[int, str, str]:
        code = main(["sample", *map(str, words), "--bundle", str(quick_bundle_path)])
        return code, *capsys.readouterr()

    return run


def test_a_clip_goes_on(svd: Svd) -> None:
    code, out, err = svd("clip.mp4", "--continue", "--frames", 5, "--fps", 6)
    assert (code, out) == (0, "clip-23.mp4\n"), err
    assert "5 frames behind the last 3 of clip.mp4" in err
    frames, fps = read_video("clip-23.mp4")
    assert len(frames) == 5 and fps == 6.0
    manifest = read_manifest("clip-23.json")
    assert (manifest["leading_frames"], manifest["num_frames"], manifest["source"]) == (3, 8, "clip.mp4")
    code, out, err = svd("clip.mp4", "--continue", "-o", "own.mp4")
    assert code == 0 and len(read_video("own.mp4")[0]) == 1, err  # of the bundle's own four, three are known


@pytest.mark.parametrize("detail", ["--carry-detail", "--no-carry-detail"])
def test_its_latents_are_decoded_to_the_same(
    svd: Svd, capsys: pytest.CaptureFixture[str], quick_bundle_path: Path, detail: str
) -> None:
    how = ("clip.mp4", "--continue", "--frames", 3, "--fps", 6, detail)
    assert svd(*how, "-o", "a", "--format", "png")[0] == 0 and svd(*how, "-o", "c.safetensors")[0] == 0
    assert (
        main(["decode", "c.safetensors", "-o", "b", "--format", "png", "--bundle", str(quick_bundle_path)])
        == 0
    )
    assert np.array_equal(read_video("a")[0], read_video("b")[0])


def test_a_mask_is_recorded(svd: Svd) -> None:
    code, _, err = svd("cat.png", "--motion-mask", "mask.png")
    assert code == 0, err
    manifest = read_manifest("cat-23.json")
    assert manifest["motion_mask"] == "mask.png" and manifest["moving_share"] == 1.0


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--continue",), 2, "--continue goes on from clips"),
        (("clip.mp4", "--continue", "--prompt", "a cat"), 2, "--continue goes on from clips"),
        (("cat.png", "--continue"), 4, "cat.png is a still picture, not a video"),
        (("-p", "a boat", "--carry-detail"), 2, "--carry-detail carries a picture's detail, and words have none"),
        (("clip.mp4", "--orbit", "--carry-detail"), 2, "--orbit and --carry-detail do not go together"),
        (("clip.mp4", "--continue", "--interpolate"), 2, "--interpolate and --continue do not go together"),
        (("clip.mp4", "--continue", "--fps", 0.5), 4, "clip.mp4 is shorter than the 3 frames at 0.5 a second"),
        (("clip.mp4", "--continue", "--motion-mask", "mask.png"), 2, "--motion-mask says what of a picture moves"),
        (("cat.png", "--motion-mask", "none.png"), 4, "none.png"),
    ],
)  # fmt: skip
def test_what_cannot_be(svd: Svd, words: tuple[object, ...], code: int, said: str) -> None:
    got, out, err = svd(*words)
    assert (got, out) == (code, "") and said in err and err.count("error: ") == 1
