"""Objects and captures through curation's engines: accounted for, resumed, killed, one account whichever engine."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("open3d", reason="multi-view needs svdcli[multiview]")
trimesh = pytest.importorskip("trimesh", reason="multi-view needs svdcli[multiview]")

from svdcli.curate.run.views import EXECUTOR, INDEX, Row, curate_mvimgnet, curate_objaverse  # noqa: E402
from svdcli.multiview.objaverse import Orbits  # noqa: E402
from svdcli.recipe.executor import Executor  # noqa: E402

SMALL = Orbits(num_views=3, side=16)
ONE = EXECUTOR.model_copy(update={"workers": 1})


def write_box(path: Path, size: float) -> None:
    box = trimesh.creation.box((1, size, 0.4))
    box.visual.vertex_colors = np.tile([200, 60, 60, 255], (8, 1)).astype(np.uint8)
    box.export(path)


@pytest.fixture
def objects(tmp_path: Path) -> Path:
    """Two objects, a copy of one, a broken one; a licence beside the first."""
    source = tmp_path / "in"
    source.mkdir()
    write_box(source / "a.ply", 0.6)
    (source / "a.json").write_text('{"license": "by", "uri": "https://example.org/a"}')
    (source / "b.ply").write_bytes((source / "a.ply").read_bytes())
    write_box(source / "c.ply", 0.8)
    (source / "d.glb").write_bytes(b"glTF broken")
    return source


def statuses(rows: list[Row]) -> list[str]:
    return [row.status for row in rows]


def journals(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "journal").iterdir()}


def test_a_folder_is_accounted_for_and_resumed(objects: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    rows = curate_objaverse(objects, out, SMALL, ONE)
    assert statuses(rows) == ["done", "duplicate", "done", "failed"]
    assert (rows[0].licence, rows[0].source) == ("by", "https://example.org/a")
    assert "a.ply" in rows[1].reason and "truncated" in rows[3].reason and str(objects) not in rows[3].kind
    index = json.loads((out / INDEX).read_text())
    assert index["counts"] == {"done": 2, "failed": 1, "duplicate": 1}
    assert sum(index["reasons"].values()) == 2 and index["items"][0]["licence"] == "by"
    before, written = (out / rows[0].folder / "view_000.png").stat().st_mtime_ns, journals(out)
    with next((out / "journal").iterdir()).open("a") as stream:
        stream.write('{"cut off by a ki')
    assert curate_objaverse(objects, out, SMALL, ONE) == rows
    assert (out / rows[0].folder / "view_000.png").stat().st_mtime_ns == before
    assert all(journals(out)[name].startswith(text) for name, text in written.items())
    (out / rows[2].folder / "transforms.json").unlink()  # views that are gone are made again, and no others
    assert curate_objaverse(objects, out, SMALL, ONE) == rows
    assert (out / rows[2].folder / "transforms.json").exists()
    assert (out / rows[0].folder / "view_000.png").stat().st_mtime_ns == before


def test_what_failed_is_tried_again_if_so_asked_or_when_it_changed(objects: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    curate_objaverse(objects / "d.glb", out, SMALL, ONE)
    lines = sum(text.count(b"\n") for text in journals(out).values())
    curate_objaverse(objects / "d.glb", out, SMALL, ONE.model_copy(update={"retry_failed": True}))
    assert sum(text.count(b"\n") for text in journals(out).values()) == lines + 1
    trimesh.creation.box().export(objects / "d.glb")
    assert statuses(curate_objaverse(objects / "d.glb", out, SMALL, ONE)) == ["done"]


def test_captures_go_the_same_way(tmp_path: Path) -> None:
    (tmp_path / "mv" / "7" / "0b" / "images").mkdir(parents=True)
    rows = curate_mvimgnet(tmp_path / "mv", tmp_path / "out", executor=ONE)
    assert statuses(rows) == ["failed"] and "no COLMAP model" in rows[0].kind


def test_killed_at_any_instant_it_goes_on(tmp_path: Path) -> None:
    """Four objects; the run is killed once one is journalled, half a tree lies about; then it ends as undisturbed."""
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for number in range(4):
        write_box(source / f"{number}.ply", 0.3 + 0.1 * number)
    script = (
        "from pathlib import Path; from svdcli.curate.run.views import *; from svdcli.multiview.objaverse import Orbits\n"
        f"curate_objaverse(Path({str(source)!r}), Path({str(out)!r}), Orbits(num_views=3, side=16),"
        " EXECUTOR.model_copy(update={'workers': 1}))"
    )
    process = subprocess.Popen([sys.executable, "-c", script])
    while process.poll() is None and not any(journals(out).values() if (out / "journal").exists() else ()):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (out / "views" / "00" / ".half.tmp").mkdir(parents=True)
    rows = curate_objaverse(source, out, SMALL, ONE)
    assert statuses(rows) == ["done"] * 4 and not list((out / "views").glob("*/.*"))
    fresh = curate_objaverse(source, tmp_path / "fresh", SMALL, ONE)
    for one, other in zip(rows, fresh, strict=True):
        for file in ("view_001.png", "transforms.json"):
            assert (out / one.folder / file).read_bytes() == (
                tmp_path / "fresh" / other.folder / file
            ).read_bytes()


@pytest.mark.slow
def test_ray_gives_the_same_account(objects: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    ray = Executor(engine="ray", workers=1, deadline=600.0)
    rows = curate_objaverse(objects, tmp_path / "ray", SMALL, ray)
    assert rows == curate_objaverse(objects, tmp_path / "pool", SMALL, ONE)
    assert curate_objaverse(objects, tmp_path / "ray", SMALL, ONE) == rows  # the pool finds nothing to do
