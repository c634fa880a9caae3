import dataclasses
import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import svdcli
from svdcli.errors import InputError
from svdcli.io.manifest import manifest_text, read_manifest, sidecar_path, versions, write_manifest


def test_round_trip_with_sorted_keys(tmp_path):
    path = tmp_path / "cat.json"
    write_manifest(path, {"seed": 3, "bundle": "nano", "name": "Käse", "nested": {"b": [1, 2.5], "a": None}})
    text = path.read_text(encoding="utf-8")
    assert text.index('"bundle"') < text.index('"seed"') and '"a"' in text and "Käse" in text
    assert read_manifest(path) == {
        "seed": 3,
        "bundle": "nano",
        "name": "Käse",
        "nested": {"b": [1, 2.5], "a": None},
    }
    assert [entry.name for entry in tmp_path.iterdir()] == ["cat.json"]


def test_values_that_json_lacks():
    @dataclasses.dataclass
    class Ids:
        fps: int
        path: Path

    plain = json.loads(
        manifest_text(
            {
                "a": np.float32(0.5),
                "b": np.arange(3),
                "c": Ids(5, Path("x/y.png")),
                "d": Fraction(24000, 1001),
                "e": {2, 1},
            }
        )
    )
    assert plain == {
        "a": 0.5,
        "b": [0, 1, 2],
        "c": {"fps": 5, "path": "x/y.png"},
        "d": "24000/1001",
        "e": [1, 2],
    }
    with pytest.raises(ValueError):
        manifest_text({"a": float("nan")})


@pytest.mark.parametrize(
    ("content", "expected"), [("{", "not valid JSON"), ("[1]", "no JSON object"), ("\xff", "JSON")]
)
def test_bad_manifests(tmp_path, content, expected):
    path = tmp_path / "cat.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=expected):
        read_manifest(path)
    with pytest.raises(InputError, match="no file"):
        read_manifest(tmp_path / "other.json")


def test_sidecar_path():
    assert sidecar_path("out/cat.mp4") == Path("out/cat.json")
    assert sidecar_path("out/frames") == Path("out/frames.json")


def test_versions_imports_nothing_heavy():
    assert versions()["svdcli"] == svdcli.__version__
    assert set(versions()) == {"svdcli", "torch", "python"}
    code = (
        "import sys, svdcli.io.manifest as m, svdcli.io.template; m.versions(); "
        "sys.exit(bool({'torch', 'numpy', 'PIL', 'av'} & set(sys.modules)))"
    )
    source = Path(__file__).parents[2] / "src"
    assert (
        subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(source)}).returncode
        == 0
    )
