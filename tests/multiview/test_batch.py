"""Folders of objects and captures -> views: accounted for, resumable, licences kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from svdcli.errors import InputError
from svdcli.multiview.batch import Item
from svdcli.multiview.cameras import static_orbit
from svdcli.multiview.colmap import write_model
from svdcli.multiview.mvimgnet import Sequences, curate_mvimgnet, find_instances, read_instance, upright
from svdcli.multiview.objaverse import Orbits, curate_objaverse, find_objects, render_object
from svdcli.multiview.transforms import read_transforms
from svdcli.multiview.views import load_views

SMALL = Orbits(num_views=4, side=32, depth=True, normals=True)


def test_a_folder_of_objects_is_accounted_for_and_resumed(cube_file: Path, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    shutil.copy(cube_file, source / "a.glb")
    (source / "a.json").write_text('{"license": "by", "uri": "https://example.org/a"}')
    shutil.copy(cube_file, source / "b.glb")
    (source / "c.glb").write_bytes(b"glTF broken")
    rows = curate_objaverse(source, tmp_path / "out", SMALL)
    assert [row.status for row in rows] == ["done", "duplicate", "failed"]
    assert rows[0].licence == "by" and "truncated" in rows[2].reason
    folder = tmp_path / "out" / rows[0].folder
    assert len(list(folder.glob("view_*.png"))) == len(list(folder.glob("normal_*.png"))) == 4
    views = load_views(folder)
    facts = read_transforms(folder / "transforms.json").facts
    assert -5 <= facts["elevation_deg"] <= 30
    assert views.cameras.elevations_deg[-1] == pytest.approx(facts["elevation_deg"])
    depth = np.asarray(Image.open(folder / "depth_003.png"))
    assert depth.max() > 1000 and (depth[views.alpha[3] == 0] == 0).all()
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert index["counts"] == {"done": 1, "failed": 1, "duplicate": 1}
    before = (folder / "view_000.png").stat().st_mtime_ns
    journal = (tmp_path / "out" / "journal.jsonl").read_text()
    with (tmp_path / "out" / "journal.jsonl").open("a") as stream:
        stream.write('{"cut off by a ki')
    again = curate_objaverse(source, tmp_path / "out", SMALL)
    assert again == rows and (folder / "view_000.png").stat().st_mtime_ns == before
    assert (tmp_path / "out" / "journal.jsonl").read_text().startswith(journal)


def test_an_objects_pictures_depend_on_nothing_but_itself(cube_file: Path, tmp_path: Path) -> None:
    for name in ("x", "y"):
        render_object(Item(cube_file), "00ff", tmp_path / name, Orbits(num_views=3, side=32, path="dynamic"))
    for file in ("view_001.png", "transforms.json"):
        assert (tmp_path / "x" / file).read_bytes() == (tmp_path / "y" / file).read_bytes()


def test_plain_objects_can_be_left_out(tmp_path: Path) -> None:
    import trimesh

    trimesh.creation.box().export(tmp_path / "plain.obj")
    with pytest.raises(InputError, match="no texture"):
        render_object(
            Item(tmp_path / "plain.obj"),
            "00",
            tmp_path / "o",
            Orbits(num_views=3, side=16, textured_only=True),
        )


def test_lists_and_indexes_keep_licences(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("file,licence,source\na.glb,CC0,here\n")
    assert find_objects(tmp_path / "list.csv") == [Item(tmp_path / "a.glb", "CC0", "here")]
    (tmp_path / "list.txt").write_text("# two\na.glb\nb.glb\n")
    assert [item.path.name for item in find_objects(tmp_path / "list.txt")] == ["a.glb", "b.glb"]
    with pytest.raises(InputError, match="no folder or list"):
        find_objects(tmp_path / "absent")


# ---- MVImgNet


@pytest.fixture
def captures(tmp_path: Path) -> Path:
    """Two instances: a good portrait one of 7 pictures in an arbitrary world, and one with an empty model."""
    root = tmp_path / "mvi"
    good = root / "7" / "0a"
    (good / "images").mkdir(parents=True)
    (good / "masks").mkdir()
    names = tuple(f"{i:03d}.jpg" for i in range(7))
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    cameras = (
        static_orbit(20, 14)
        .cameras(2.0, side=64)
        .take(range(7))
        .resized(40, 64)
        .moved(turn, np.array([1.0, 2, 3]), 5)
    )
    for index, name in enumerate(names):
        picture = np.full((64, 40, 3), 20 * index, np.uint8)
        Image.fromarray(picture).save(good / "images" / name)
        mask = np.zeros((64, 40), np.uint8)
        mask[:10, :10] = 255  # upper left
        Image.fromarray(mask).save(good / "masks" / f"{name}.png")
    (good / "sparse").mkdir()
    write_model(good / "sparse" / "0", cameras, names)
    bad = root / "7" / "0b"
    (bad / "images").mkdir(parents=True)
    (bad / "sparse" / "0").mkdir(parents=True)
    return root


def test_captures_are_turned_resampled_and_accounted_for(captures: Path, tmp_path: Path) -> None:
    rows = curate_mvimgnet(captures, tmp_path / "out", Sequences(num_views=4, side=32))
    assert [row.status for row in rows] == ["done", "failed"] and "no COLMAP model" in rows[1].reason
    assert rows[0].facts["turned"] and rows[0].facts["masks"] == 4
    assert rows[0].facts["arc_deg"] == pytest.approx(6 * 360 / 14, abs=1)
    folder = tmp_path / "out" / rows[0].folder
    read = read_transforms(folder / "transforms.json")
    assert (read.cameras.width, read.cameras.height) == (51, 32) and read.masks[0] == "masks/view_000.png"
    assert read.cameras.azimuths_deg[-1] == pytest.approx(0, abs=1e-6)
    assert np.allclose(read.cameras.elevations_deg, 20, atol=1e-3)
    mask = np.asarray(Image.open(folder / "masks" / "view_000.png"))
    assert mask[-3, 2] > 200 and mask[2, 2] == 0  # what was upper left is lower left after the turn
    levels = [int(np.asarray(Image.open(folder / f"view_{i:03d}.png")).mean()) for i in range(4)]
    assert np.allclose(levels, [0, 40, 80, 120], atol=3)


def test_too_few_pictures_are_a_reason(captures: Path, tmp_path: Path) -> None:
    item = find_instances(captures)[0]
    with pytest.raises(InputError, match="too few registered pictures, 7 of 21"):
        read_instance(item, "0", tmp_path / "o", Sequences())


def test_upright_finds_the_world_of_an_orbit_again() -> None:
    cameras = static_orbit(20, 10).cameras(2.0, side=32)
    turn = np.array([[0, 0, 1.0], [1, 0, 0], [0, 1, 0]])
    placed, arc = upright(cameras.moved(turn, np.array([3.0, -1, 2]), 7.0))
    assert np.allclose(placed.elevations_deg, 20) and np.allclose(placed.radii, 2)
    assert arc == pytest.approx(324)
    assert np.allclose(np.diff(np.unwrap(placed.azimuths_deg, period=360)), 36)
