from __future__ import annotations

from pathlib import Path

import pytest

from svdcli import shipped
from svdcli.errors import MachineError
from svdcli.shipped import shipped_path


@pytest.mark.parametrize("home", [0, 1], ids=["wheel", "checkout"])
def test_found_in_either_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: int) -> None:
    homes = (tmp_path / "wheel", tmp_path / "checkout")
    monkeypatch.setattr(shipped, "_HOMES", homes)
    bundle = homes[home] / "assets" / "nano"
    bundle.mkdir(parents=True)
    assert shipped_path("assets", "nano") == bundle


def test_an_absent_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "_HOMES", (tmp_path,))
    with pytest.raises(MachineError, match="lacks assets/nano/unet") as caught:
        shipped_path("assets", "nano", "unet")
    assert "pip install" in caught.value.hint


@pytest.mark.parametrize("kind", ["assets", "recipes"])
def test_this_installation_ships_both(kind: str) -> None:
    assert any(shipped_path(kind).iterdir())  # type: ignore[arg-type]
