"""Which clips of a dataset are trained on: by file name, and by what the camera does in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from svdcli.data.clip import Clip
from svdcli.data.dataset import count_videos, open_dataset
from svdcli.data.shards import ShardWriter
from svdcli.errors import InputError
from svdcli.io.video import write_video
from svdcli.recipe.recipe import Data

NAMES = ("left-1", "left-2", "right-1", "left-held", "right-held")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("videos")
    for name in NAMES:
        write_video(folder / f"{name}.mp4", np.zeros((4, 64, 64, 3), np.uint8), 8.0, {}, "mp4")
    return folder


@pytest.fixture(scope="module")
def shards(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as shards, whose index names each clip's camera."""
    folder: Path = tmp_path_factory.mktemp("shards")
    with ShardWriter(folder) as writer:
        for name in NAMES:
            camera = f"pan_{name.partition('-')[0]}"
            clip = Clip(name, f"{name}.mp4", 0.0, 0.5, 8.0, 64, 64, 4, motion=0.1, camera=camera)
            writer.add(clip, (videos / f"{name}.mp4").read_bytes())
    return folder


def data_of(source: Path, **keys: object) -> Data:
    data = Data(source=source, width=64, height=64, held_out=("*held*",))
    return data.model_copy(update=keys)


def names(data: Data, tmp_path: Path) -> tuple[list[str], list[str]]:
    train_set, held_out = open_dataset(data, tmp_path)
    found = tuple(sorted(Path(v.name).stem for v in footage.videos) for footage in (train_set, held_out))
    assert tuple(map(len, found)) == count_videos(data)
    return found[0], found[1]


def test_included_patterns(videos: Path, shards: Path, tmp_path: Path) -> None:
    for index, source in enumerate((videos, shards)):
        data = data_of(source, include=("left-*",))
        assert names(data, tmp_path / str(index)) == (["left-1", "left-2"], ["left-held"])
    both = data_of(videos, include=("left-*",), exclude=("*-2*",))
    assert names(both, tmp_path / "both")[0] == ["left-1"]
    with pytest.raises(InputError, match="data.exclude and data.include leave none of 5 videos"):
        count_videos(data_of(videos, include=("up-*",)))


def test_a_camera_class(shards: Path, tmp_path: Path) -> None:
    assert names(data_of(shards, camera="pan_right"), tmp_path) == (["right-1"], ["right-held"])
    with pytest.raises(InputError, match="No clip in .* has the camera class 'zoom_in'") as caught:
        count_videos(data_of(shards, camera="zoom_in"))
    assert "pan_left, pan_right" in caught.value.hint


def test_where_the_camera_is_not_known_it_says_so(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs an index that knows each clip's camera") as caught:
        count_videos(data_of(videos, camera="pan_left"))
    assert "data.include" in caught.value.hint
    with ShardWriter(tmp_path) as writer:
        writer.add(Clip("a", "a.mp4", 0.0, 0.5, 8.0, 64, 64, 4), b"x")
    with pytest.raises(InputError, match="knows no clip's camera, so"):
        count_videos(data_of(tmp_path, camera="pan_left"))
