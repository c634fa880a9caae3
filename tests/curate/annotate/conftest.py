"""Clips as annotators get them, made of frames: written to disk, with their proxy."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from svdcli.curate.annotate import View
from svdcli.curate.course import Course, CourseMeter
from svdcli.curate.proxy import KEY_SIDE, SMALL_FPS, SMALL_SIDE, Proxy
from svdcli.curate.rows import CutClip
from svdcli.io.video import write_video

Frames = npt.NDArray[np.uint8]
MakeView = Callable[..., View]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """As in a worker."""
    cv2.setNumThreads(1)


@pytest.fixture
def make_view(tmp_path: Path) -> MakeView:
    """frames (T, H, W, 3), fps -> the View of a clip that shows them; without `write` there is no file."""

    def make(name: str, frames: Frames, fps: float, write: bool = False, **scores: Any) -> View:
        path = tmp_path / f"{name}.mp4"
        if write:
            write_video(path, frames, fps, {}, "mp4")
        return view_of(name, path, frames, fps, scores)

    return make


def course_of(frames: Frames, fps: float) -> Course:
    meter = CourseMeter()
    for frame in frames:
        meter.push(cv2.cvtColor(scaled(frame, SMALL_SIDE), cv2.COLOR_RGB2GRAY))
    return meter.course(0, len(frames), np.arange(len(frames)) / fps)


def view_of(name: str, path: Path, frames: Frames, fps: float, scores: Any) -> View:
    count = max(2, int((len(frames) - 1) / fps * SMALL_FPS + 1e-9) + 1)
    picked = sorted(
        {min(len(frames) - 1, round(i * fps / SMALL_FPS)) for i in range(count)} | {len(frames) - 1}
    )
    keys = [frames[0], frames[len(frames) // 2], frames[-1]]
    proxy = Proxy(
        np.array(picked) / fps,
        np.stack([scaled(frames[i], SMALL_SIDE) for i in picked]),
        np.stack([scaled(key, KEY_SIDE) for key in keys]),
        course_of(frames, fps),
    )
    height, width = frames.shape[1:3]
    return View(
        CutClip(
            id=name,
            source="source",
            start_pts=0,
            end_pts=len(frames),
            start=0.0,
            end=len(frames) / fps,
            opens="start",
            closes="end",
            confidence=1.0,
            path=f"clips/{name}.mp4",
            size=0,
            digest=hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "",
            width=width,
            height=height,
            num_frames=len(frames),
            fps=fps,
            method="encode",
        ),
        path,
        proxy,
        scores,
    )


def scaled(frame: Frames, side: int) -> Frames:
    height, width = frame.shape[:2]
    scale = min(1.0, side / min(height, width))
    size = (round(width * scale), round(height * scale))
    return np.asarray(cv2.resize(np.ascontiguousarray(frame), size, interpolation=cv2.INTER_AREA), np.uint8)


def load_beside(name: str) -> ModuleType:
    """A module beside this file."""
    spec = importlib.util.spec_from_file_location(f"annotate_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def scenes() -> ModuleType:
    """The module scenes.py beside this file: a room and a camera."""
    return load_beside("scenes")


@pytest.fixture(scope="session")
def textures(scenes: ModuleType) -> list[Frames]:
    """Photographs where ../shared/data lies beside this checkout, coloured noise where it does not."""
    folder = Path(__file__).resolve().parents[4] / "shared" / "data"
    return scenes.real_pictures(folder) if folder.is_dir() else [scenes.procedural(seed) for seed in range(6)]


@pytest.fixture(scope="session")
def captioner_at(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny captioner of some kind, see captioners.py."""
    module, made = load_beside("captioners"), {}

    def at(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            module.KINDS[kind](made[kind])
        return made[kind]

    return at


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole CLIP model, two small towers of random weights, whose tokenizer knows single letters."""
    import json

    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = {"bos_token": words[-2], "eos_token": words[-1], "unk_token": words[-1], "pad_token": words[-1]}
    config = special | {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"vocab_size": len(words), "bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1}
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(
            text_config=shape | ends | {"projection_dim": 24},
            vision_config=shape | {"image_size": 32, "patch_size": 8, "projection_dim": 24},
            projection_dim=24,
        )
    )
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(torch.randn_like(tensor) * 0.1)
    model.save_pretrained(folder)
    side = {"height": 32, "width": 32}
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=side).save_pretrained(folder)
    return folder
