"""`svd sample --interpolate` through main()."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from svdcli.cli import app
from svdcli.io.video import read_metadata, read_video, write_video

Svd = Callable[..., tuple[int, str, str]]


@pytest.fixture
def svd(
    capsys: pytest.CaptureFixture[str],
    between_bundle_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Svd:
    """Run `svd sample --interpolate` on the tiny bundle, unless another is given, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        words = ["sample", "--interpolate", *map(str, arguments)]
        code = app.main(words if "--bundle" in words else [*words, "--bundle", str(between_bundle_path)])
        return code, *capsys.readouterr()

    return run


def draw(path: Path, count: int = 1, width: int = 46, height: int = 34) -> np.ndarray:
    """A picture, or a video of some, that moves."""
    rng = np.random.default_rng(count)
    tiles = np.kron(rng.integers(0, 255, (9, 12, 3)), np.ones((4, 4, 1)))[:height, :width].astype(np.uint8)
    frames = np.stack([np.roll(tiles, 2 * t, axis=1) for t in range(count)])
    if count == 1:
        Image.fromarray(frames[0]).save(path)
    else:
        write_video(path, frames, Fraction(30000, 1001), {}, "mp4")
    return frames


def test_two_pictures_become_a_clip_that_holds_them(svd: Svd) -> None:
    first, last = draw(Path("a.png"), width=48, height=32), draw(Path("b.png"), width=48, height=32)[:, ::-1]
    Image.fromarray(np.ascontiguousarray(last[0])).save("b.png")
    code, stdout, stderr = svd("a.png", "b.png", "-o", "out", "--format", "png", "--seed", 4, "--json")
    assert code == 0, stderr
    (clip,) = json.loads(stdout)["clips"]
    frames, fps = read_video(clip["output"])
    assert len(frames) == 5 and fps == 20
    assert np.array_equal(frames[0], first[0]) and np.array_equal(frames[-1], last[0])
    assert (clip["bundle"], clip["seed"], clip["num_frames"]) == ("between", 4, 5)
    assert json.loads(read_metadata(clip["output"])["comment"]) == clip


def test_a_clip_gets_four_times_its_frames(svd: Svd) -> None:
    draw(Path("clip.mp4"), 4)
    given, _ = read_video("clip.mp4")
    assert svd("clip.mp4", "-o", "frames", "--format", "png")[0] == 0
    frames, fps = read_video("frames")
    assert len(frames) == 13 and fps == pytest.approx(4 * 30000 / 1001)
    assert np.array_equal(frames[::4], given)  # to the bit, at a size of no whole latents
    code, stdout, _ = svd("clip.mp4", "-o", "lifted.mp4")
    assert (code, stdout) == (0, "lifted.mp4\n") and Path("lifted.json").is_file()
    with av.open("lifted.mp4") as container:
        stream = container.streams.video[0]
        assert (stream.frames, stream.width, stream.height) == (13, 46, 34)
        assert stream.average_rate == pytest.approx(4 * 30000 / 1001, rel=1e-3)


def test_size_steps_and_frames_are_as_asked(svd: Svd) -> None:
    draw(Path("clip.mp4"), 3)
    code, stdout, stderr = svd(
        "clip.mp4", "-o", "a.mp4", "--size", "64x64", "--frames", 3, "--motion", 90, "--json"
    )
    assert code == 0, stderr
    (clip,) = json.loads(stdout)["clips"]
    assert (clip["num_frames"], clip["motion_bucket"], clip["motion_measured"]) == (3, 90, False)
    frames, _ = read_video("a.mp4")
    assert frames.shape == (5, 64, 64, 3)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["a.png"], 4, "nothing between a single picture"),
        (["a.png", "clip.mp4"], 2, "pictures or clips, not both"),
        (["none.mp4"], 4, "none.mp4"),
        (["clip.mp4", "--count", "2"], 2, "--interpolate and --count do not go together"),
        (["clip.mp4", "--format", "latents"], 2, "no latents"),
        (["clip.mp4", "--frames", "2"], 2, "counts the two given frames"),
        (["clip.mp4", "--bundle", "nano"], 4, "needs an interpolation model"),
        (["clip.mp4", "-o", "clip.mp4"], 2, "clip.mp4"),
    ],
)  # fmt: skip
def test_what_does_not_go_is_said_in_a_sentence(svd: Svd, words: list[str], code: int, said: str) -> None:
    draw(Path("a.png"), width=48, height=32)
    draw(Path("clip.mp4"), 3)
    found, stdout, stderr = svd(*words)
    assert (found, stdout) == (code, "") and said in stderr


def test_a_plan_runs_nothing(svd: Svd) -> None:
    draw(Path("clip.mp4"), 3)
    code, stdout, _ = svd("clip.mp4", "--plan")
    assert code == 0 and "denoise" in stdout and not Path("clip-23.mp4").exists()


def test_an_interpolation_bundle_is_known(
    between_bundle_path: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert app.main(["models", "info", str(between_bundle_path)]) == 0
    told = capsys.readouterr().out
    assert "interp" in told.splitlines()[0] and "mask_latent" in told
    draw(Path("a.png"), width=48, height=32)
    assert app.main(["sample", "a.png", "--bundle", str(between_bundle_path)]) == 4
    assert "is an interpolation model" in capsys.readouterr().err
