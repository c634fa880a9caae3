"""`svd decode` through main(): it finishes what `svd sample` could not, with the same video."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from svdcli.cli import app
from svdcli.io.latents import save_latents
from svdcli.io.manifest import read_manifest
from svdcli.io.video import read_metadata, read_video
from svdcli.model import hub
from svdcli.model.vae import VAE

Svd = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with one picture, on a machine without bundles."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(hub.FOLDERS, raising=False)
    pixels = np.random.default_rng(0).integers(0, 255, (8, 12, 3), np.uint8)
    Image.fromarray(pixels).resize((60, 40)).save("cat.png")
    return work


@pytest.fixture
def svd(capsys: pytest.CaptureFixture[str]) -> Svd:
    def run(*arguments: object) -> tuple[int, str, str]:
        code = app.main([*map(str, arguments)])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def bundle(quick_bundle_path: Path, tmp_path: Path) -> Path:
    """The quick bundle at a place of its own."""
    return Path(shutil.copytree(quick_bundle_path, tmp_path / "mine", symlinks=True))


def fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(VAE, "decode", decode)


@pytest.mark.parametrize("output", ["clip.mp4", "clip.gif", "sub/clip", "my clips/clip.webp"])
def test_a_failed_decode_is_finished_with_the_same_video(
    svd: Svd, bundle: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    options = ["--format", "png"] if output == "sub/clip" else []
    with monkeypatch.context() as patch:
        fail(patch)
        code, out, err = svd("sample", "cat.png", "-b", bundle, "-o", output, *options)
    assert (code, out) == (5, "") and "the memory ran out, even for decoding a single frame" in err
    latents = Path(output).with_name("clip.latents.safetensors")
    assert f"Then `svd decode {latents}` finishes" in err.replace("'", "") and latents.exists()
    assert not Path(output).exists()

    code, out, err = svd("decode", latents)
    assert (code, out) == (0, f"{output}\n"), err
    assert svd("sample", "cat.png", "-b", bundle, "-o", Path("direct", Path(output).name), *options)[0] == 0
    frames, fps = read_video(output)
    direct, direct_fps = read_video(Path("direct", Path(output).name))
    assert np.array_equal(frames, direct) and fps == direct_fps == 7.0
    manifest = read_manifest(Path(output).with_name("clip.json"))
    assert manifest == json.loads(read_metadata(output)["comment"])
    same = {"output": None}
    assert manifest | same == read_manifest(Path("direct", "clip.json")) | same


@pytest.fixture
def stored(svd: Svd, bundle: Path) -> Path:
    assert svd("sample", "cat.png", "-b", bundle, "-o", "a.safetensors", "--fps", 9)[0] == 0
    return Path("a.safetensors")


def test_latents_become_a_video_of_their_own_rate(svd: Svd, stored: Path) -> None:
    code, out, err = svd("decode", stored, "--json", "--decode-chunk", 3, "--decode-overlap", 1)
    assert code == 0 and out.count("\n") == 1, err
    (clip,) = json.loads(out)["clips"]
    assert clip["output"] == "a.mp4" and clip == read_manifest("a.json")
    assert (clip["decode_chunk"], clip["decode_overlap"], clip["fps"]) == (3, 1, 9.0)
    assert clip["source"] == "cat.png" and clip["format"] == "mp4"
    assert read_video("a.mp4")[1] == 9.0


def test_where_and_what_to_write_is_chosen(svd: Svd, stored: Path, folder: Path) -> None:
    assert svd("decode", stored, "-o", "b.gif")[1] == "b.gif\n"
    assert svd("decode", stored, "-o", "new/")[1] == "new/cat-23.mp4\n"
    assert svd("decode", stored, "--format", "png")[1] == "a\n"
    assert len(list(Path("a").iterdir())) == 4
    assert np.array_equal(read_video("a")[0], read_video("a")[0])


def test_an_existing_video_is_replaced_only_when_asked(svd: Svd, stored: Path) -> None:
    Path("a.mp4").write_text("mine")
    for options in ([], ["-o", "a.mp4"]):
        code, _, err = svd("decode", stored, *options)
        assert code == 2 and "a.mp4 already exists" in err
    assert svd("decode", stored, "--overwrite")[0] == 0


def test_a_bundle_that_moved_is_a_sentence_and_can_be_given(svd: Svd, stored: Path, bundle: Path) -> None:
    moved = bundle.rename(bundle.with_name("elsewhere"))
    code, out, err = svd("decode", stored)
    assert (code, out) == (4, "") and "mine" in err
    assert svd("decode", stored, "--bundle", moved)[0] == 0


@pytest.mark.parametrize(
    ("make", "code", "sentence"),
    [
        (lambda path: None, 4, "There is no file"),
        (lambda path: path.write_bytes(b""), 4, "is empty"),
        (lambda path: path.write_text("text"), 4, "is not a safetensors file"),
        (lambda path: path.mkdir(), 4, "is a folder"),
        (lambda path: save_latents(path, torch.zeros(2, 4, 4, 4), {}), 4, "carries no manifest"),
    ],
)
def test_what_is_not_ours_is_refused(
    svd: Svd, folder: Path, make: Callable[[Path], Any], code: int, sentence: str
) -> None:
    make(Path("x.safetensors"))
    found, out, err = svd("decode", "x.safetensors")
    assert (found, out) == (code, "") and sentence in err and err.count("error:") == 1
    assert not list(folder.glob("x.mp4"))


def test_truncated_latents_are_refused(svd: Svd, stored: Path) -> None:
    stored.write_bytes(stored.read_bytes()[:-10])
    code, _, err = svd("decode", stored)
    assert code == 4 and "truncated or damaged" in err


def test_latents_cannot_become_latents(svd: Svd, stored: Path) -> None:
    for options in (["--format", "latents"], ["-o", "b.safetensors"]):
        code, _, err = svd("decode", stored, *options)
        assert code == 2 and "latents are what svd decode reads" in err


def test_latents_of_other_channels_name_their_bundle(svd: Svd, bundle: Path) -> None:
    manifest = json.dumps({"fps": 6.0, "bundle": "nano"})
    save_latents("x.safetensors", torch.zeros(2, 8, 4, 4), {"manifest": manifest})
    code, _, err = svd("decode", "x.safetensors", "-b", bundle)
    assert code == 4 and "8 channels" in err and "--bundle nano" in err
