"""A small study: two or three models, a few prompts, clips of a square that moves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from svdcli.evaluate.prefer.study import Study, plan_study
from svdcli.io.video import write_video


def write_clip(
    path: Path, shade: int, num_frames: int = 6, size: tuple[int, int] = (48, 64), **metadata: str
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = np.full((num_frames, *size, 3), shade, np.uint8)
    for index, frame in enumerate(frames):
        frame[10:30, 4 * index : 4 * index + 20] = 255 - shade
    write_video(path, frames, 12, metadata, "mp4")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three models' videos of six prompts; each carries its model's name, as `svd sample` writes it."""
    home = tmp_path_factory.mktemp("models")
    for index, model in enumerate(("secret-one", "secret-two", "secret-three")):
        for prompt in range(6):
            write_clip(
                home / model / f"prompt-{prompt}.mp4", 20 + 40 * index + prompt, comment=f"made by {model}"
            )
    return {path.name: path for path in sorted(home.iterdir())}


@pytest.fixture
def study(folders: dict[str, Path], tmp_path: Path) -> tuple[Path, Study]:
    """Two models, six prompts, quality, two votes each; with two attention checks."""
    chosen = {name: folders[name] for name in ("secret-one", "secret-two")}
    return tmp_path / "study", plan_study(chosen, tmp_path / "study", votes=2)
