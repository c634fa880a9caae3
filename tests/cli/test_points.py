"""`svd points` through `main`: a cloud, the check, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("open3d", reason="multi-view needs svdcli[multiview]")
trimesh = pytest.importorskip("trimesh", reason="multi-view needs svdcli[multiview]")

from svdcli.cli.app import main  # noqa: E402
from svdcli.multiview.items import Item  # noqa: E402
from svdcli.multiview.objaverse import Orbits, render_object  # noqa: E402


@pytest.fixture(scope="module")
def orbit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("orbit")
    box = trimesh.creation.box((1, 0.6, 0.4))
    box.visual.vertex_colors = np.tile([200, 60, 60, 255], (8, 1)).astype(np.uint8)
    box.export(folder / "box.ply")
    render_object(Item(folder / "box.ply"), "0a", folder / "views", Orbits(num_views=8, side=64))
    return folder / "views"


def test_a_folder_becomes_a_cloud(orbit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "cloud"
    arguments = [
        "points",
        str(orbit),
        "-o",
        str(target),
        "--fast",
        "--points",
        "500",
        "--format",
        "ply,colmap",
        "--json",
    ]
    assert main(arguments) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["points"] == 500 and (target / "points.ply").exists()
    assert (target / "sparse" / "0" / "images.txt").exists() and (target / "points.json").exists()
    assert 0.97 < max(answer["size"]) < 1.25  # the hull of only eight views juts out at the corners
    assert main(arguments) == 2  # it exists already


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--mend"], 2), (["--format", "stl"], 2), (["--elevation", "10"], 2), (["--elevation", "100"], 2)],
)
def test_what_cannot_be_is_refused(orbit: Path, arguments: list[str], code: int) -> None:
    assert main(["points", str(orbit), *arguments]) == code


def test_a_missing_folder_is_an_input_error(tmp_path: Path) -> None:
    assert main(["points", str(tmp_path / "none")]) == 4
