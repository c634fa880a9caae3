"""`svd sample` through main(): inputs, outputs, and every way to get it wrong."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from svdcli.cli import app, choices, making
from svdcli.diffusion.samplers import SAMPLERS
from svdcli.engine.memory import MODES
from svdcli.engine.subjects import Still
from svdcli.errors import MachineError, UsageError
from svdcli.io.images import read_picture
from svdcli.io.latents import load_latents
from svdcli.io.manifest import read_manifest
from svdcli.io.template import SUFFIXES
from svdcli.io.video import read_metadata, read_video
from svdcli.model import hub

Svd = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder on a machine without bundles; here it must end as it began, but for outputs."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(hub.FOLDERS, raising=False)
    yield work
    assert not [path for path in work.rglob("*") if path.name.startswith(".")]  # temporary files


@pytest.fixture
def svd(capsys: pytest.CaptureFixture[str], quick_bundle_path: Path) -> Svd:
    """Run `svd sample` on the quick bundle, unless another is given."""

    def run(*arguments: object) -> tuple[int, str, str]:
        words = ["sample", *map(str, arguments)]
        code = app.main(words if "--bundle" in words else [*words, "--bundle", str(quick_bundle_path)])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def picture() -> Path:
    return draw(Path("cat.png"))


def draw(path: Path, width: int = 60, height: int = 40, mode: str = "RGB", **options: Any) -> Path:
    """A picture of soft colours, red on the left and blue on the right."""
    across, down = np.linspace(0, 255, width), np.linspace(0, 255, height)
    pixels = np.stack(
        [
            np.tile(across[::-1], (height, 1)),
            np.tile(down[:, None], (1, width)),
            np.tile(across, (height, 1)),
        ],
        -1,
    )
    Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(path, **options)
    return path


def made_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# ---- outputs


def test_a_picture_becomes_a_video_with_its_manifest(svd: Svd, picture: Path, folder: Path) -> None:
    code, out, err = svd(picture, "--frames", 4, "--fps", 6)
    assert (code, out) == (0, "cat-23.mp4\n"), err
    assert made_in(folder) == {"cat.png", "cat-23.mp4", "cat-23.json"}
    frames, fps = read_video("cat-23.mp4")
    assert frames.shape == (4, 32, 48, 3) and fps == 6.0
    manifest = read_manifest("cat-23.json")
    assert json.loads(read_metadata("cat-23.mp4")["comment"]) == manifest
    assert manifest["vector_ids"] == [5.0, 127.0, 0.02] and manifest["seed"] == 23
    assert "quick on cpu in float32, memory mode high" in err and "warning" not in err


def test_json_is_one_object(svd: Svd, picture: Path) -> None:
    code, out, err = svd(picture, "--json", "--seed", 3)
    answer = json.loads(out)
    assert code == 0 and out.count("\n") == 1
    assert [clip["output"] for clip in answer["clips"]] == ["cat-3.mp4"]
    assert answer["clips"][0] == read_manifest("cat-3.json") and answer["manifest"] is None


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.webp", "a.safetensors"])
def test_the_suffix_says_what_to_write(svd: Svd, picture: Path, folder: Path, name: str) -> None:
    code, out, err = svd(picture, "-o", name)
    assert (code, out) == (0, f"{name}\n"), err
    assert made_in(folder) == {"cat.png", name, "a.json"}
    if name == "a.safetensors":
        assert load_latents(name)[0].shape == (4, 4, 16, 24)
        assert "svd decode a.safetensors" in err
    else:
        assert len(read_video(name)[0]) == 4


def test_frames_are_a_folder(svd: Svd, picture: Path, folder: Path) -> None:
    assert svd(picture, "--format", "png", "-o", "clip")[0] == 0
    assert made_in(folder) == {"cat.png", "clip.json", *(f"clip/0000{i}.png" for i in range(4))}


def test_several_inputs_go_by_a_template_and_share_a_manifest(svd: Svd, folder: Path) -> None:
    Path("in").mkdir()
    for name in ("in/b.png", "in/a10.png", "in/a2.png", "c.png"):
        draw(Path(name))
    code, out, err = svd("in/a*.png", "c.png", "-o", "out/{index:02d}-{name}-{seed}", "--count", 2)
    assert code == 0, err
    names = [
        f"out/0{i}-{name}-{23 + i % 2}.mp4" for i, name in enumerate(["a2", "a2", "a10", "a10", "c", "c"])
    ]
    assert out.split() == names
    manifest = read_manifest("out/svd-manifest.json")
    assert [clip["output"] for clip in manifest["clips"]] == names
    assert manifest["clips"][0] == read_manifest("out/00-a2-23.json")


def test_the_shared_manifest_keeps_earlier_runs(svd: Svd, folder: Path) -> None:
    draw(Path("a.png")), draw(Path("b.png"))
    assert svd("a.png", "b.png")[0] == 0
    code, _, err = svd("a.png", "b.png", "--seed", 23, "--count", 2, "--overwrite", "--motion", 5)
    assert code == 0, err
    clips = read_manifest("svd-manifest.json")["clips"]
    assert [clip["output"] for clip in clips] == ["a-23.mp4", "b-23.mp4", "a-24.mp4", "b-24.mp4"]
    assert {clip["motion_bucket"] for clip in clips} == {5.0}
    Path("svd-manifest.json").write_text('{"clips": 3}')
    code, _, err = svd("a.png", "b.png", "--seed", 90)
    assert code == 4 and "svd-manifest.json" in err and not Path("a-90.mp4").exists()


def test_a_folder_of_every_kind_of_picture(svd: Svd, folder: Path) -> None:
    Path("in").mkdir()
    draw(Path("in/grey.png"), mode="L")
    draw(Path("in/palette.png"), mode="P")
    draw(Path("in/rgba.png"), mode="RGBA")
    Image.fromarray(np.full((40, 60), 40000, np.uint16)).save("in/sixteen.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying, to be shown upright
    draw(Path("in/turned.jpg"), exif=exif)
    draw(Path("in/upright.png"), 40, 60)
    stills = [Image.new("RGB", (60, 40), colour) for colour in ("red", "blue")]
    stills[0].save("in/moving.gif", save_all=True, append_images=stills[1:])
    code, out, err = svd("in", "-o", "out/", "--json")
    assert code == 0, err
    sizes = {Path(clip["source"]).stem: (clip["width"], clip["height"]) for clip in json.loads(out)["clips"]}
    lying = dict.fromkeys(("grey", "palette", "rgba", "sixteen", "moving"), (48, 32))
    assert sizes == {**lying, "turned": (32, 48), "upright": (32, 48)}
    assert "moving.gif is an animation: its first frame is used" in err
    assert read_video("out/upright-23.mp4")[0].shape == (4, 48, 32, 3)


def test_fits_differ_and_size_is_obeyed(svd: Svd, folder: Path) -> None:
    draw(Path("wide.png"), 160, 40)
    starts = []
    for fit in ("crop", "pad", "stretch"):
        code, _, err = svd("wide.png", "--fit", fit, "-o", f"{fit}.mp4", "--size", "96x64", "--steps", 1)
        assert code == 0 and "was trained at 48x32; 96x64 may look worse" in err
        starts.append(read_video(f"{fit}.mp4")[0])
        assert read_manifest(f"{fit}.json")["fit"] == fit
    assert starts[0].shape == (4, 64, 96, 3)
    assert len({frames.tobytes() for frames in starts}) == 3


def test_an_asked_size_is_not_turned(svd: Svd) -> None:
    draw(Path("tall.png"), 40, 60)
    assert svd("tall.png", "--size", "96x64", "--steps", 1)[0] == 0
    assert read_video("tall-23.mp4")[0].shape == (4, 64, 96, 3)


def test_ranking_puts_the_best_first_with_a_sheet(svd: Svd, picture: Path, folder: Path) -> None:
    code, out, err = svd(picture, "--count", 3, "--rank", "--json")
    assert code == 0, err
    answer = json.loads(out)
    (group,) = answer["ranking"]
    scores = [clip["score"] for clip in group["clips"]]
    assert scores == sorted(scores, reverse=True) and {clip["seed"] for clip in group["clips"]} == {
        23,
        24,
        25,
    }
    assert set(group["clips"][0]) == {"output", "seed", "score", "motion", "flicker", "fidelity_db"}
    with Image.open(group["sheet"]) as sheet:
        assert group["sheet"] == "cat-23.ranking.png" and sheet.width >= 4 * 48 and sheet.height >= 3 * 32
    assert read_manifest("svd-manifest.json")["ranking"] == answer["ranking"]
    code, out, _ = svd(picture, "--count", 3, "--rank", "--overwrite")
    assert out.split() == [*(clip["output"] for clip in group["clips"]), group["sheet"]]


def test_a_seed_is_the_same_clip_in_any_company(svd: Svd, picture: Path) -> None:
    draw(Path("other.png"), 50, 50)
    assert svd("other.png", picture, "--count", 2, "--format", "png")[0] == 0
    assert svd(picture, "--seed", 24, "--format", "png", "-o", "alone")[0] == 0
    assert np.array_equal(read_video("alone")[0], read_video("cat-24")[0])


def test_every_memory_mode_writes_the_same_file(svd: Svd, picture: Path) -> None:
    for mode in MODES:
        assert svd(picture, "--vram", mode, "--format", "png", "-o", mode)[0] == 0
        assert np.array_equal(read_video(mode)[0], read_video("high")[0])
        assert read_manifest(f"{mode}.json")["vram"] == mode


def test_every_option_reaches_the_manifest(svd: Svd, picture: Path) -> None:
    code, _, err = svd(
        picture, "--frames", 3, "--fps", 11.5, "--motion", 300, "--augment", 0.2, "--steps", 3, "--sampler", "heun",
        "--schedule", "500,20,1", "--guidance", "triangle:1:2", "--churn", 1, "--temperature", 0.75, "--carry-detail",
        "--seed", 8, "--fit", "pad",
        "--dtype", "float32", "--device", "cpu", "--decode-chunk", 2, "--decode-overlap", 0, "-o", "a.mp4",
    )  # fmt: skip
    assert code == 0, err
    expected = {
        "num_frames": 3, "fps": 11.5, "motion_bucket": 300.0, "augment": 0.2, "sampler": "heun",
        "schedule": "500,20,1", "guidance": "triangle:1:2", "s_churn": 1.0, "temperature": 0.75, "carry_detail": True,
        "seed": 8, "fit": "pad",
        "dtype": "float32", "device": "cpu", "decode_chunk": 2, "decode_overlap": 0, "sigmas": [500, 20, 1, 0],
        "guidance_scales": [1, 2, 1], "vector_ids": [10.5, 300.0, 0.2],
    }  # fmt: skip
    manifest = read_manifest("a.json")
    assert {name: manifest[name] for name in expected} == expected
    assert read_video("a.mp4")[1] == 11.5
    assert "trained on 4 frames; 3 may drift" in err and "motion buckets up to 255" in err


def test_preview_is_named_and_gone_in_the_end(svd: Svd, picture: Path, folder: Path) -> None:
    code, _, err = svd(picture, "--preview")
    assert code == 0 and "watch cat-23.preview.png" in err
    assert made_in(folder) == {"cat.png", "cat-23.mp4", "cat-23.json"}


def test_plan_prints_by_stage_and_runs_nothing(
    svd: Svd, picture: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from svdcli.engine import memory

    monkeypatch.setattr(memory.Residence, "use", lambda *_: pytest.fail("something was loaded"))
    code, out, _ = svd(picture, "--plan")
    assert code == 0 and made_in(folder) == {"cat.png"}
    for word in ("embed", "encode", "denoise", "decode", "* high", "normal", "low", "none", "free on cpu"):
        assert word in out
    answer = json.loads(svd(picture, "--plan", "--json")[1])
    assert set(answer["modes"]) == set(MODES) and answer["chosen"] == "high"
    for mode in answer["modes"].values():
        assert mode["peak"] == max(mode["stages"].values()) and mode["decode_chunk"] == 4


@pytest.mark.slow
def test_two_devices_share_the_clips_and_give_one_answer(quick_bundle_path: Path, folder: Path) -> None:
    for name in ("a", "b", "c"):
        draw(Path(f"{name}.png"))
    done = run_process(
        "a.png", "b.png", "c.png", "--devices", 2, "--device", "cpu", "--json", "--count", 2, "--rank",
        "--bundle", quick_bundle_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    names = [f"{name}-{seed}" for name in "abc" for seed in (23, 24)]
    assert [clip["output"] for clip in answer["clips"]] == [f"{name}.mp4" for name in names]
    assert len(answer["ranking"]) == 3
    assert read_manifest("svd-manifest.json")["clips"] == answer["clips"]
    sheets = {f"{name}-23.ranking.png" for name in "abc"}
    made = {f"{name}.{suffix}" for name in names for suffix in ("mp4", "json")}
    assert made_in(folder) == {"a.png", "b.png", "c.png", "svd-manifest.json"} | made | sheets


@pytest.mark.slow
def test_a_share_that_fails_does_not_stop_the_other(quick_bundle_path: Path, folder: Path) -> None:
    draw(Path("a.png")), draw(Path("b.png"))
    # The second output's sidecar cannot be written: a folder stands there, which only --overwrite lets pass.
    Path("b-23.json").mkdir()
    done = run_process(
        "a.png", "b.png", "--devices", 2, "--device", "cpu", "--overwrite", "--bundle", quick_bundle_path
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("error:") == 1 and "b-23.json is a folder" in done.stderr
    assert "svd decode b-23.latents.safetensors" in done.stderr
    assert len(read_video("a-23.mp4")[0]) == 4


def run_process(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "svdcli", "sample", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(Path(app.__file__).parents[2])}
    return subprocess.run(words, capture_output=True, text=True, timeout=300, env=environment, **options)


# ---- what is refused, and that nothing is left behind


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size; its pixels are never reached."""

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", zlib.compress(b"")) + part(b"IEND", b"")
    )


def bad_pictures() -> dict[str, tuple[Callable[[Path], object], str]]:
    return {
        "missing": (lambda path: None, "There is no file"),
        "text": (lambda path: path.write_text("not a picture at all"), "it holds text"),
        "truncated": (
            lambda path: path.write_bytes(draw(path, 200, 150).read_bytes()[:-300]),
            "truncated or damaged",
        ),
        "empty": (lambda path: path.write_bytes(b""), "is empty (0 bytes)"),
        "tiny": (lambda path: draw(path, 1, 1), "too small: 1x1"),
        "huge": (lambda path: path.write_bytes(png_header(20_000, 20_000)), "too large: 400 million pixels"),
        "folder": (lambda path: path.mkdir(), "no picture in the folder"),
    }


@pytest.mark.parametrize("kind", bad_pictures())
def test_a_bad_picture_is_found_before_any_work(svd: Svd, picture: Path, folder: Path, kind: str) -> None:
    make, sentence = bad_pictures()[kind]
    make(Path("bad.png"))
    before = made_in(folder)
    code, out, err = svd(picture, picture, "bad.png", "-o", "new/")
    assert (code, out) == (4, "") and sentence in err and one_sentence(err)
    assert made_in(folder) == before and not Path("new").exists()


def one_sentence(err: str) -> bool:
    """Only what is said on the way, one error, one hint."""
    lines = [line.split(":")[0] for line in err.splitlines()]
    return lines[-2:] in (["error", "hint"], [lines[-2], "error"]) and lines.count("error") == 1


def bad_bundles() -> dict[str, tuple[Callable[[Path], object], str]]:
    unet = "unet/diffusion_pytorch_model.safetensors"

    def cut(bundle: Path) -> None:
        (bundle / unet).write_bytes((bundle / unet).read_bytes()[:-1000])

    def spoil(bundle: Path) -> None:
        (bundle / unet).write_bytes(b"\xff" * 4000)

    def to_pickle(bundle: Path) -> None:
        (bundle / unet).unlink()
        (bundle / "unet/diffusion_pytorch_model.bin").write_bytes(pickle.dumps({}))

    def to_image_model(bundle: Path) -> None:
        config = json.loads((bundle / "unet/config.json").read_text())
        (bundle / "unet/config.json").write_text(json.dumps(config | {"_class_name": "UNet2DConditionModel"}))

    return {
        "truncated": (cut, "cut short"),
        "corrupt": (spoil, "not a safetensors file"),
        "pickle": (to_pickle, "is a pickle"),
        "image": (to_image_model, "is an image model, not an image-to-video model"),
        "missing": (lambda bundle: (bundle / "model_index.json").unlink(), "no model_index.json"),
    }


@pytest.mark.parametrize("kind", bad_bundles())
def test_a_bad_bundle_is_a_sentence(
    svd: Svd, picture: Path, folder: Path, tiny_bundle_path: Path, tmp_path: Path, kind: str
) -> None:
    damage, sentence = bad_bundles()[kind]
    bundle = Path(shutil.copytree(tiny_bundle_path, tmp_path / "bundle"))
    damage(bundle)
    code, out, err = svd(picture, "--bundle", bundle, "--size", "64x64", "--frames", 2)
    assert (code, out) == (4, "") and sentence in err and one_sentence(err), err
    assert made_in(folder) == {"cat.png"}


def test_an_unknown_bundle_and_a_pickle_by_name(svd: Svd, picture: Path, folder: Path) -> None:
    code, _, err = svd(picture, "--bundle", "nosuch")
    assert code == 4 and "nosuch" in err and one_sentence(err)
    Path("model.ckpt").write_bytes(pickle.dumps({}))
    code, _, err = svd(picture, "--bundle", "model.ckpt")
    assert code == 4 and "is a pickle" in err
    assert made_in(folder) == {"cat.png", "model.ckpt"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--frames", "0"], "--frames"), (["--frames", "x"], "--frames"), (["--steps", "0"], "--steps"),
        (["--fps", "nan"], "--fps nan is not between"), (["--fps", "0"], "--fps 0 is not between"),
        (["--fps", "inf"], "--fps inf"), (["--motion", "nan"], "--motion nan"), (["--motion", "-1"], "--motion -1"),
        (["--augment", "nan"], "--augment nan"), (["--augment", "-0.1"], "--augment -0.1"),
        (["--churn", "nan"], "--churn nan"),
        (["--temperature", "-1"], "--temperature -1"), (["--churn", "1", "--sampler", "dpmpp_2m"], "--churn is not for"),
        (["--guidance", "nan"], "guidance is nan"), (["--guidance", "1:2:3"], "cannot be read"),
        (["--schedule", "nan,1"], "nan"), (["--schedule", "karas"], "'karas' is unknown"),
        (["--size", "0x0"], "--size 0x0 is not WIDTHxHEIGHT"), (["--size", "big"], "--size big"),
        (["--size", "101x100"], "are not multiples of 2"), (["--sampler", "nosuch"], "--sampler"),
        (["--seed", "-1"], "--seed"), (["--count", "0"], "--count"), (["--fit", "shrink"], "--fit"),
        (["--rank"], "--rank compares several"), (["--rank", "--count", "2", "-o", "a{seed}.safetensors"], "--rank"),
        (["--device", "toaster"], "no kind of device toaster"), (["--decode-chunk", "0"], "--decode-chunk"),
        (["-o", "a.txt"], "a.txt"), (["-o", "{nosuch}.mp4"], "unknown field {nosuch}"),
        (["-o", "a.mp4", "--count", "2"], "would both be"), (["-o", "cat.png/a.mp4"], "cat.png cannot be made a folder"),
        (["--format", "gif", "-o", "a.mp4"], "a.mp4"), (["--nosuch"], "--nosuch"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_a_sentence(
    svd: Svd, picture: Path, folder: Path, options: list[str], sentence: str
) -> None:
    code, out, err = svd(picture, *options)
    assert (code, out) == (2, "") and sentence in err and one_sentence(err), err
    assert made_in(folder) == {"cat.png"}


def test_no_file_is_replaced_unasked(svd: Svd, picture: Path, folder: Path) -> None:
    for name, options in {
        "cat-23.mp4": [], "cat-23.json": [], "cat-23.latents.safetensors": [],
        "cat-23.preview.png": ["--preview"], "cat-24.ranking.png": ["--rank", "--count", "2"],
    }.items():  # fmt: skip
        Path(name).write_text("mine")
        code, _, err = svd(picture, *options)
        assert code == 2 and name in err and "--overwrite" in err and Path(name).read_text() == "mine"
        Path(name).unlink()
    Path("cat-23.latents.safetensors").write_text("mine")
    assert "svd decode cat-23.latents.safetensors" in svd(picture)[2]
    assert svd(picture, "--overwrite")[0] == 0
    assert made_in(folder) == {"cat.png", "cat-23.mp4", "cat-23.json"}


def test_names_that_share_a_sidecar_are_refused(svd: Svd, picture: Path, folder: Path) -> None:
    code, _, err = svd(picture, "--count", 2, "--format", "png", "-o", "a.{seed}0")
    assert code == 2 and "behind a dot" in err and made_in(folder) == {"cat.png"}


def test_a_full_disk_is_found_and_keeps_the_latents(
    svd: Svd, picture: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from svdcli.io import files

    real = files._flush_to_disk

    def flush(path: Path) -> None:
        if path.suffix == ".mp4":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path)

    monkeypatch.setattr(files, "_flush_to_disk", flush)
    code, out, err = svd(picture)
    assert (code, out) == (5, "") and "The disk is full" in err and one_sentence(err)
    assert "svd decode cat-23.latents.safetensors" in err
    assert made_in(folder) == {"cat.png", "cat-23.latents.safetensors"}


def test_too_little_memory_is_a_sentence(
    svd: Svd, picture: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from svdcli.engine import plan

    monkeypatch.setattr(plan, "free_bytes", lambda _: 100 << 20)
    code, _, err = svd(picture)
    assert code == 5 and "GiB are free" in err and "--vram none" in err and one_sentence(err)
    assert made_in(folder) == {"cat.png"}
    assert svd(picture, "--vram", "none")[0] == 0


@pytest.mark.slow
def test_ctrl_c_in_the_middle_leaves_nothing(quick_bundle_path: Path, picture: Path, folder: Path) -> None:
    words = ["sample", str(picture), "--steps", "5000", "--preview", "--bundle", str(quick_bundle_path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "svdcli", *words], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(app.__file__).parents[2])},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not Path("cat-23.preview.png").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == "" and err.rstrip().endswith("error: interrupted"), err
    assert made_in(folder) == {"cat.png"}


def test_ctrl_c_in_the_decode_says_how_to_go_on(
    svd: Svd, picture: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from svdcli.model.vae import VAE

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(VAE, "decode", interrupt)
    code, out, err = svd(picture, "--quiet")
    assert (code, out) == (130, "") and "`svd decode cat-23.latents.safetensors` finishes it" in err
    assert made_in(folder) == {"cat.png", "cat-23.latents.safetensors"}


# ---- choices


def test_the_names_on_the_command_line_are_those_of_the_engine() -> None:
    assert {sampler.value for sampler in choices.Sampler} == set(SAMPLERS)
    assert {kind.value for kind in choices.Kind} == set(SUFFIXES)
    assert {mode.value for mode in choices.Vram} == {"auto", *MODES}


def test_a_size_of_the_wrong_multiple_names_the_nearest() -> None:
    from svdcli.engine.generate import Sampling
    from svdcli.model.settings import Settings

    sampling = Sampling.of(Settings(width=100, height=3))
    with pytest.raises(UsageError) as caught:
        choices.check_size(sampling, 8)
    assert caught.value.hint == "Use --size 96x8."


def test_precision_is_that_of_the_device_or_as_asked() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert choices.choose_dtype(cpu, None) == torch.float32
    assert choices.choose_dtype(cuda, None) == torch.float16
    for precision in choices.Precision:
        assert choices.choose_dtype(cpu, precision) == getattr(torch, precision.value)


def test_devices_that_are_absent_or_contradict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choices.choose_device("auto") == torch.device("cuda")
    assert choices.choose_device("cuda:1") == torch.device("cuda:1")
    assert choices.choose_device("cuda", 2) == torch.device("cuda")
    assert choices.choose_device("cpu", 3) == torch.device("cpu")
    with pytest.raises(MachineError, match="no device cuda:2"):
        choices.choose_device("cuda:2")
    with pytest.raises(MachineError, match="--devices 3 asks for more than the 2"):
        choices.choose_device("cuda", 3)
    with pytest.raises(UsageError, match="contradict"):
        choices.choose_device("cuda:1", 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(MachineError, match="no device cuda"):
        choices.choose_device("cuda")


def test_the_shared_manifest_lies_in_the_common_folder(tmp_path: Path) -> None:
    from svdcli.engine.produce import Job

    def jobs(*outputs: str | Path) -> list[Job]:
        return [Job(Still(Path("a.png")), 1, Path(output)) for output in outputs]

    assert making.index_path(jobs("a/b/1.mp4")) is None
    assert making.index_path(jobs("a/b/1.mp4", "a/c/2.mp4")) == Path("a/svd-manifest.json")
    assert making.index_path(jobs("1.mp4", "c/2.mp4")) == Path("svd-manifest.json")
    assert making.index_path(jobs(tmp_path / "1.mp4", tmp_path / "2.mp4")) == tmp_path / "svd-manifest.json"


def test_a_black_and_white_scan_counts_as_a_picture(svd: Svd) -> None:
    draw(Path("scan.png"), mode="1")
    assert read_picture("scan.png").pixels.shape == (40, 60, 3) and svd("scan.png", "--steps", 1)[0] == 0


# ---- words ---------------------------------------------------------------------------------------------


def test_words_become_a_video(svd: Svd, text_bundle_path: Path, folder: Path) -> None:
    code, stdout, stderr = svd("--prompt", "a boat at sea", "--negative", "fog", "--bundle", text_bundle_path)
    assert code == 0, stderr
    (line,) = stdout.split()
    assert read_video(line)[0].shape == (4, 32, 48, 3) and "boat" in line
    manifest = read_manifest(Path(line).with_suffix(".json"))
    assert (manifest["source"], manifest["negative"]) == ("a boat at sea", "fog")
    assert manifest["vector_ids"] == [7.0, 127.0]


def test_one_frame_of_words_is_a_picture(svd: Svd, text_bundle_path: Path) -> None:
    words = (
        "--prompt",
        "a boat",
        "--prompt",
        "a cat",
        "--frames",
        1,
        "--format",
        "png",
        "--output",
        "{name}",
    )
    code, stdout, stderr = svd(*words, "--bundle", text_bundle_path)
    assert code == 0, stderr
    assert [len(list(Path(line).glob("*.png"))) for line in stdout.split()] == [1, 1]


def test_words_where_they_say_nothing(svd: Svd, text_bundle_path: Path, picture: Path) -> None:
    code, stdout, stderr = svd("--prompt", "a boat")
    assert (code, stdout) == (4, "") and "is an image-to-video model, not a text-to-video model" in stderr
    for wrong in (
        ("--prompt", " "),
        ("--prompt", "a boat", picture),
        ("--prompt", "a", "--rank", "--count", 2),
    ):
        code, stdout, stderr = svd(*wrong, "--bundle", text_bundle_path)
        assert (code, stdout) == (2, ""), stderr
    code, _, stderr = svd(picture, "--bundle", text_bundle_path)
    assert code == 4 and "is a text-to-video model, not an image-to-video model" in stderr
