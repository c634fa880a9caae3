"""The made-up corpus that the tests of curation share."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def corpus() -> ModuleType:
    """The module corpus.py beside this file."""
    spec = importlib.util.spec_from_file_location("corpus", Path(__file__).with_name("corpus.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["corpus"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def mp4s(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Three videos of 16 frames of 96×64 at 8 a second, each brighter than the one before."""
    import numpy as np

    from svdcli.io.video import write_video

    found = []
    for number in range(3):
        file = tmp_path_factory.mktemp("mp4") / "a.mp4"
        frames = (
            np.full((16, 64, 96, 3), 40 + 60 * number, np.uint8)
            + np.arange(16, dtype=np.uint8)[:, None, None, None]
        )
        write_video(file, frames, 8.0, {}, "mp4")
        found.append(file.read_bytes())
    return found
