"""From jobs to files: what is written, what is left where something fails, and how it is taken up again."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from svdcli.engine import produce as module
from svdcli.engine.generate import Sampling
from svdcli.engine.memory import Residence
from svdcli.engine.produce import (
    Job,
    Writing,
    decode_command,
    finish,
    latents_path,
    preview_path,
    produce,
    read_latents,
)
from svdcli.engine.subjects import Still, turned
from svdcli.errors import InputError, MachineError, SvdError
from svdcli.io.images import read_picture
from svdcli.io.latents import save_latents
from svdcli.io.manifest import read_manifest, sidecar_path
from svdcli.io.video import read_metadata, read_video
from svdcli.model.bundle import open_bundle
from svdcli.model.vae import VAE


@pytest.fixture(scope="module")
def residence(tiny_bundle_path: Path) -> Residence:
    return Residence(open_bundle(tiny_bundle_path), "high", torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def sampling(residence: Residence) -> Sampling:
    native = Sampling.of(residence.files.settings)
    return replace(native, width=32, height=24, num_frames=4, num_steps=2, fps=6.0, guidance="1.0")


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(Still(picture_file(tmp_path / "in" / "cat.png")), 5, tmp_path / "out.mp4")


def picture_file(path: Path, width: int = 40, height: int = 30) -> Path:
    path.parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (height // 5, width // 5, 3), np.uint8)
    Image.fromarray(pixels).resize((width, height)).save(path)
    return path


MP4 = Writing("mp4", chunk=4, overlap=1)


class Ear:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.begun: list[Job] = []
        self.steps: list[int] = []
        self.decoded: list[tuple[int, int]] = []
        self.notes: list[str] = []
        self.latents: list[Path] = []
        self.at_step: Callable[[], None] = lambda: None

    def begin(self, job: Job) -> None:
        self.begun.append(job)

    def step(self, job: Job, info: Any) -> None:
        self.steps.append(info.index)
        self.at_step()

    def frames(self, job: Job, done: int, total: int) -> None:
        self.decoded.append((done, total))

    def note(self, text: str) -> None:
        self.notes.append(text)

    def kept(self, latents: Path) -> None:
        self.latents.append(latents)


@pytest.fixture
def ear() -> Ear:
    return Ear()


def files_beside(output: Path) -> set[str]:
    return {path.name for path in output.parent.iterdir() if path.name != "in"}


# ---- what is written


def test_a_clip_its_manifest_and_nothing_else(
    job: Job, residence: Residence, sampling: Sampling, ear: Ear
) -> None:
    (clip,) = produce([job], residence, sampling, MP4, ear)
    assert files_beside(job.output) == {"out.mp4", "out.json"}
    frames, fps = read_video(job.output)
    assert frames.shape == (4, 24, 32, 3) and fps == 6.0
    assert (
        clip.frames is not None and np.abs(frames.astype(int) - clip.frames).mean() < 25
    )  # noise in yuv420p
    assert clip.picture is not None and clip.picture.shape == (24, 32, 3)
    assert read_manifest(sidecar_path(job.output)) == clip.manifest
    assert json.loads(read_metadata(job.output)["comment"]) == clip.manifest
    assert ear.begun == [job] and ear.steps == [0, 1] and ear.decoded[-1] == (4, 4) and ear.latents == []


def test_the_manifest_has_every_value_in_use(
    job: Job, residence: Residence, sampling: Sampling, ear: Ear
) -> None:
    sampling = replace(sampling, fps=12.0, motion_bucket=40.0, augment=0.1, guidance="1.0:2.0")
    (clip,) = produce([job], residence, sampling, replace(MP4, chunk=3, overlap=9), ear)
    manifest = clip.manifest
    assert manifest["vector_ids"] == [11.0, 40.0, 0.1]
    assert manifest["sigmas"] == pytest.approx([700.0, 0.002, 0.0])
    assert manifest["guidance_scales"] == pytest.approx([1, 4 / 3, 5 / 3, 2], rel=1e-5)
    expected = {
        "source": str(job.subject.source), "output": str(job.output), "seed": 5, "bundle": "tiny", "fps": 12.0,
        "num_frames": 4, "width": 32, "height": 24, "num_steps": 2, "sampler": "euler", "schedule": "karras",
        "guidance": "1.0:2.0", "fit": "crop", "format": "mp4", "decode_chunk": 3, "decode_overlap": 2,
        "device": "cpu", "dtype": "float32", "decode_dtype": "float32", "vram": "high", "notes": [],
    }  # fmt: skip
    assert {name: manifest[name] for name in expected} == expected
    assert set(manifest["versions"]) == {"svdcli", "torch", "python"}
    assert read_video(job.output)[1] == 12.0


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
def test_other_kinds_carry_the_manifest_too(
    job: Job, residence: Residence, sampling: Sampling, ear: Ear, kind: str
) -> None:
    job = replace(job, output=job.output.with_suffix("" if kind == "png" else f".{kind}"))
    (clip,) = produce([job], residence, sampling, replace(MP4, kind=kind), ear)
    frames, fps = read_video(job.output)
    assert len(frames) == 4 and fps == 6.0
    assert json.loads(read_metadata(job.output)["comment"]) == read_manifest(sidecar_path(job.output))
    assert clip.manifest["format"] == kind
    assert files_beside(job.output) == {job.output.name, "out.json"}


@pytest.mark.parametrize("carry", [False, True])
def test_latents_are_an_output_and_svd_decode_reads_them(
    job: Job, residence: Residence, sampling: Sampling, ear: Ear, carry: bool
) -> None:
    """With all that it takes: the picture too, where its detail is to be carried."""
    sampling = replace(sampling, carry_detail=carry)
    stored = replace(job, output=job.output.with_suffix(".safetensors"))
    (clip,) = produce([stored], residence, sampling, replace(MP4, kind="latents", preview=True), ear)
    assert clip.frames is None and files_beside(job.output) == {"out.safetensors", "out.json"}
    undecoded, bundle_path = read_latents(stored.output)
    assert undecoded.latents.shape == (4, 4, 12, 16) and undecoded.manifest == clip.manifest
    assert list(undecoded.given) == [0] * carry
    assert Path(bundle_path) == residence.files.path.resolve()
    finished = finish(stored.output, job.output, residence, MP4, ear)
    (direct,) = produce(
        [replace(job, output=job.output.with_name("direct.mp4"))], residence, sampling, MP4, ear
    )
    assert finished.frames is not None and np.array_equal(finished.frames, direct.frames)


def test_a_clip_begins_with_the_picture_where_its_detail_is_carried(
    job: Job, residence: Residence, sampling: Sampling, ear: Ear
) -> None:
    (carried,) = produce([job], residence, replace(sampling, carry_detail=True), MP4, ear)
    other = replace(job, output=job.output.with_name("plain.mp4"))
    (plain,) = produce([other], residence, sampling, MP4, ear)
    assert carried.picture is not None and carried.frames is not None and plain.frames is not None
    picture = np.rint(carried.picture * 255)
    assert np.array_equal(carried.frames[0], picture) and not np.array_equal(plain.frames[0], picture)
    assert carried.manifest["carry_detail"] and not plain.manifest["carry_detail"]


def test_several_jobs_come_one_after_another(
    job: Job, residence: Residence, sampling: Sampling, ear: Ear
) -> None:
    jobs = [replace(job, seed=seed, output=job.output.with_name(f"{seed}.mp4")) for seed in (5, 6)]
    clips = produce(jobs, residence, sampling, MP4, ear)
    first = next(clips)
    assert jobs[0].output.exists() and not jobs[1].output.exists()
    second = next(clips)
    assert first.manifest["seed"] == 5 and second.manifest["seed"] == 6
    assert not np.array_equal(first.frames, second.frames)


# ---- pictures


def test_a_portrait_turns_the_size(
    residence: Residence, sampling: Sampling, tmp_path: Path, ear: Ear
) -> None:
    job = Job(Still(picture_file(tmp_path / "in" / "tall.png", 30, 40), turn=True), 5, tmp_path / "out.mp4")
    (clip,) = produce([job], residence, sampling, MP4, ear)
    assert clip.frames is not None and clip.frames.shape == (4, 32, 24, 3)
    assert (clip.manifest["width"], clip.manifest["height"]) == (24, 32)
    asked = replace(job, subject=Still(Path(job.subject.source)), output=tmp_path / "asked.mp4")
    (clip,) = produce([asked], residence, sampling, MP4, ear)
    assert clip.frames is not None and clip.frames.shape == (4, 24, 32, 3)


@pytest.mark.parametrize(
    ("picture", "size", "expected"),
    [((30, 40), (32, 24), (24, 32)), ((40, 30), (24, 32), (32, 24)), ((40, 30), (32, 24), (32, 24)),
     ((30, 30), (32, 24), (32, 24)), ((30, 30), (24, 32), (24, 32)), ((30, 40), (32, 32), (32, 32))],
)  # fmt: skip
def test_turning(
    sampling: Sampling,
    tmp_path: Path,
    picture: tuple[int, int],
    size: tuple[int, int],
    expected: tuple[int, int],
) -> None:
    read = read_picture(picture_file(tmp_path / "a.png", *picture))
    result = turned(replace(sampling, width=size[0], height=size[1]), read)
    assert (result.width, result.height) == expected


def test_notes_of_the_picture_are_told_and_recorded(
    residence: Residence, sampling: Sampling, tmp_path: Path, ear: Ear
) -> None:
    source = tmp_path / "in.gif"
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    frames[0].save(source, save_all=True, append_images=frames[1:])
    (clip,) = produce([Job(Still(source), 1, tmp_path / "out.mp4")], residence, sampling, MP4, ear)
    assert "animation" in ear.notes[0] and clip.manifest["notes"] == ear.notes


# ---- previews


@pytest.mark.parametrize("fails", [False, True])
def test_a_preview_is_there_while_the_clip_is_made(
    job: Job, residence: Residence, sampling: Sampling, ear: Ear, fails: bool
) -> None:
    sizes = []

    def look() -> None:
        if len(ear.steps) == 2:  # written after the first step
            with Image.open(preview_path(job.output)) as sheet:
                sizes.append(sheet.size)
            if fails:
                raise KeyboardInterrupt

    ear.at_step = look
    try:
        list(produce([job], residence, sampling, replace(MP4, preview=True), ear))
    except KeyboardInterrupt:
        assert fails
    assert len(sizes) == 1 and sizes[0][0] >= 4 * 16
    assert any("out.preview.png" in note for note in ear.notes)
    assert not preview_path(job.output).exists()


# ---- failures


def fail_to_decode(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def decode(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(VAE, "decode", decode)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("a bug"), KeyboardInterrupt()])
def test_a_failed_decode_leaves_its_latents_and_says_so(
    job: Job, residence: Residence, sampling: Sampling, ear: Ear, monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:  # fmt: skip
    with monkeypatch.context() as patch:
        fail_to_decode(patch, error)
        with pytest.raises(BaseException) as caught:  # noqa: B017 - whichever it is
            list(produce([job], residence, sampling, MP4, ear))
    kept = latents_path(job.output)
    assert files_beside(job.output) == {kept.name}
    if isinstance(caught.value, SvdError):
        assert decode_command(kept) in caught.value.hint and isinstance(caught.value, MachineError)
    else:
        assert ear.latents == [kept]
    finished = finish(kept, job.output, residence, MP4, ear)
    (direct,) = produce(
        [replace(job, output=job.output.with_name("direct.mp4"))], residence, sampling, MP4, ear
    )
    assert np.array_equal(finished.frames, direct.frames)
    same = {"output": None}
    assert read_manifest(sidecar_path(job.output)) | same == direct.manifest | same


def test_short_memory_is_told_and_recorded(
    job: Job, residence: Residence, sampling: Sampling, ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = VAE.decode

    def decode(self: VAE, latents: torch.Tensor) -> torch.Tensor:
        if latents.shape[1] > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return real(self, latents)

    monkeypatch.setattr(VAE, "decode", decode)
    (clip,) = produce([job], residence, sampling, MP4, ear)
    assert clip.manifest["decode_chunk"] == 2 and clip.manifest["decode_overlap"] == 1
    assert any("2 frames at a time" in note for note in ear.notes)


@pytest.mark.parametrize("which", ["video", "manifest"])
def test_a_full_disk_leaves_nothing_half_written(
    job: Job, residence: Residence, sampling: Sampling, ear: Ear, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    suffix = {"video": ".mp4", "manifest": ".json"}[which]
    from svdcli.io import files

    real = files._flush_to_disk

    def flush(path: Path) -> None:
        if path.suffix == suffix:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path)

    monkeypatch.setattr(files, "_flush_to_disk", flush)
    with pytest.raises(MachineError, match="disk is full") as caught:
        list(produce([job], residence, sampling, MP4, ear))
    assert files_beside(job.output) == {"out.latents.safetensors"}
    assert "svd decode" in caught.value.hint


def test_an_interrupt_before_the_decode_leaves_nothing(
    job: Job, residence: Residence, sampling: Sampling, ear: Ear
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    ear.at_step = interrupt
    with pytest.raises(KeyboardInterrupt):
        list(produce([job], residence, sampling, MP4, ear))
    assert files_beside(job.output) == set() and ear.latents == []


def test_numbers_that_are_not_finite_are_a_sentence(
    job: Job, residence: Residence, sampling: Sampling, ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = torch.full((4, 4, 12, 16), float("nan"))
    monkeypatch.setattr(module, "generate_windows", lambda *_: broken)
    with pytest.raises(InputError, match="not finite"):
        list(produce([job], residence, sampling, MP4, ear))
    assert files_beside(job.output) == set()


# ---- taking up


def test_latents_of_another_bundle_are_refused(residence: Residence, tmp_path: Path, ear: Ear) -> None:
    path = tmp_path / "a.safetensors"
    save_latents(path, torch.zeros(4, 8, 6, 6), {"manifest": json.dumps({"fps": 6.0, "bundle": "nano"})})
    with pytest.raises(InputError, match="8 channels") as caught:
        finish(path, tmp_path / "a.mp4", residence, MP4, ear)
    assert "--bundle nano" in caught.value.hint


@pytest.mark.parametrize("texts", [{}, {"manifest": "{"}, {"manifest": "[]"}, {"manifest": '{"fps": "x"}'},
                                   {"manifest": '{"fps": 0}'}])  # fmt: skip
def test_latents_without_a_manifest_are_refused(tmp_path: Path, texts: dict[str, str]) -> None:
    save_latents(tmp_path / "a.safetensors", torch.zeros(4, 4, 6, 6), texts)
    with pytest.raises(InputError, match="no manifest"):
        read_latents(tmp_path / "a.safetensors")


def test_the_command_that_finishes_is_quoted() -> None:
    assert decode_command(Path("my clips/a.safetensors")) == "svd decode 'my clips/a.safetensors'"
