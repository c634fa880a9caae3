"""One object, one capture -> views; lists of them, licences kept; Objaverse's ids. Whole runs: tests/curate/test_views.py."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from svdcli.errors import InputError, MachineError
from svdcli.multiview.cameras import static_orbit
from svdcli.multiview.colmap import write_model
from svdcli.multiview.items import Item, content_key
from svdcli.multiview.mvimgnet import Sequences, find_instances, read_instance, upright
from svdcli.multiview.objaverse import Orbits, find_objects, render_object
from svdcli.multiview.transforms import read_transforms
from svdcli.multiview.views import load_views

SMALL = Orbits(num_views=4, side=32, depth=True, normals=True)


def test_an_object_is_rendered_with_depth_and_normals(cube_file: Path, tmp_path: Path) -> None:
    facts = render_object(Item(cube_file, "by"), "0a", tmp_path / "o", SMALL)
    assert (
        len(list((tmp_path / "o").glob("view_*.png")))
        == len(list((tmp_path / "o").glob("normal_*.png")))
        == 4
    )
    views = load_views(tmp_path / "o")
    assert -5 <= facts["elevation_deg"] <= 30 and facts["licence"] == "by"
    assert read_transforms(tmp_path / "o" / "transforms.json").facts["licence"] == "by"
    assert views.cameras.elevations_deg[-1] == pytest.approx(facts["elevation_deg"])
    depth = np.asarray(Image.open(tmp_path / "o" / "depth_003.png"))
    assert depth.max() > 1000 and (depth[views.alpha[3] == 0] == 0).all()


def test_an_object_can_be_said_to_lie_on_its_side(tmp_path: Path) -> None:
    import trimesh

    trimesh.creation.box((0.2, 1, 0.2)).export(tmp_path / "tall.obj")
    for up, taller in ((None, True), ("x", False)):
        render_object(Item(tmp_path / "tall.obj"), "00", tmp_path / "o", Orbits(num_views=4, side=48, up=up))
        rows, columns = np.nonzero(load_views(tmp_path / "o").alpha.max(axis=0) > 0.5)
        assert (np.ptp(rows) > np.ptp(columns)) == taller


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


UID, ABSENT = "0" * 28 + "abcd", "f" * 32


@pytest.fixture
def hub(cube_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A hub of this machine that holds two ids of Objaverse, of which one lacks its file; an empty cache."""
    files = tmp_path / "hub"
    place = files / "glbs" / "000-007" / f"{UID}.glb"
    place.parent.mkdir(parents=True)
    place.write_bytes(cube_file.read_bytes())
    (files / "metadata").mkdir()
    places = {UID: f"glbs/000-007/{UID}.glb", "e" * 32: f"glbs/000-007/{'e' * 32}.glb"}
    (files / "object-paths.json.gz").write_bytes(gzip.compress(json.dumps(places).encode()))
    stated = {UID: {"license": "by-nc", "viewerUrl": "https://example.org/x"}}
    (files / "metadata" / "000-007.json.gz").write_bytes(gzip.compress(json.dumps(stated).encode()))

    class Hub(SimpleHTTPRequestHandler):
        def translate_path(self, path: str) -> str:
            return (
                str(files / path.partition("/resolve/main/")[2]) if "/allenai/objaverse/" in path else "/none"
            )

        def send_response(self, code: int, message: str | None = None) -> None:
            super().send_response(code, message)
            self.send_header("X-Repo-Commit", "0" * 40)
            if code == 200:
                self.send_header("ETag", f'"{abs(hash(self.path)):x}"')
            else:
                self.send_header("X-Error-Code", "EntryNotFound")

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    point_hub_at(f"http://127.0.0.1:{server.server_port}", tmp_path, monkeypatch)
    yield files
    server.shutdown()


def point_hub_at(address: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's client reads its settings once, when it is loaded."""
    from huggingface_hub import constants, file_download

    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    for module in (constants, file_download):
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


def test_ids_of_objaverse_bring_their_licence_and_their_file(hub: Path, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text(f"# by hand\n{UID}\n{'e' * 32}\n")
    found, without = find_objects(tmp_path / "ids.txt")
    assert found == Item(Path(UID), "by-nc", "https://example.org/x", f"glbs/000-007/{UID}.glb")
    assert content_key(found) == UID[:16] and find_objects(Path(UID)) == [found]
    facts = render_object(found, content_key(found), tmp_path / "o", Orbits(num_views=3, side=16))
    assert facts["licence"] == "by-nc" and (tmp_path / "o" / "view_002.png").exists()
    with pytest.raises(InputError, match="has no file glbs/000-007/eee"):
        render_object(without, content_key(without), tmp_path / "p", SMALL)
    with pytest.raises(InputError, match=f"Objaverse has no object {ABSENT}"):
        find_objects(Path(ABSENT))


def test_without_the_hub_ids_are_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_hub_at("http://127.0.0.1:9", tmp_path, monkeypatch)
    with pytest.raises(MachineError, match="is not on this machine and cannot be fetched") as caught:
        find_objects(Path(UID))
    assert "HF_ENDPOINT" in caught.value.hint


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


def test_captures_are_turned_and_resampled(captures: Path, tmp_path: Path) -> None:
    good, bad = find_instances(captures)
    folder = tmp_path / "out"
    facts = read_instance(good, "0", folder, Sequences(num_views=4, side=32))
    assert facts["turned"] and facts["masks"] == 4
    assert facts["arc_deg"] == pytest.approx(6 * 360 / 14, abs=1)
    with pytest.raises(InputError, match="no COLMAP model"):
        read_instance(bad, "0", tmp_path / "bad", Sequences())
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
