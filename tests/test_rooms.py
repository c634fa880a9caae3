"""The house keeps its floors: a room imports only from floors below. Imports are read, culprits named."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "svdcli"

FLOORS = {
    "errors": 0,
    "shipped": 0,
    "recipe": 1,
    "io": 2,
    "data": 3,
    "model": 3,
    "diffusion": 3,
    "multiview": 3,
    "curate": 4,
    "engine": 4,
    "evaluate": 4,
    "cli": 5,
}
PACKAGE = "__init__"  # svdcli itself, which holds the version: below everything
# Packages that only one room may import.
KEEPERS = {
    "diffusers": "engine",  # its image models, in paint.py; else it is the tests' reference
    "typer": "cli",
    "rich": "cli",
    "lightning": "engine",
    "lightning_fabric": "engine",
    "open3d": "multiview",
    "pydantic": "recipe",
}
# Packages that no room may import, and why.
BANNED = {
    "click": "Typer carries its own Click",
    "accelerate": "it is the tests' reference, not a dependency",
}


def room_of(module: str) -> str:
    """`svdcli.model.unet` -> `model`; `svdcli.__main__` is the door of `cli`."""
    parts = module.split(".")
    name = parts[1] if len(parts) > 1 else PACKAGE
    return "cli" if name == "__main__" else name


def imports(source: str, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """(line, absolute module) of every import, also inside functions and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                parents = parents[: len(parents) - node.level + is_package]
                base = ".".join([*parents, base] if base else parents)
            if base == "svdcli":  # from svdcli import model
                yield from ((node.lineno, f"svdcli.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, base


def offences(source: str, module: str, is_package: bool = False) -> list[str]:
    """What this module imports and must not, one sentence each."""
    room = room_of(module)
    if room not in FLOORS and room != PACKAGE:
        return [f"{module}: room {room!r} has no floor; give it one in FLOORS"]
    floor = FLOORS.get(room, -1)
    found = []
    for line, name in imports(source, module, is_package):
        where = f"{module}:{line} ({room}, floor {floor}) imports {name}"
        top = name.split(".")[0]
        if top in BANNED:
            found.append(f"{where}, which nothing here may: {BANNED[top]}")
        elif KEEPERS.get(top, room) != room:
            found.append(f"{where}, which only {KEEPERS[top]} may")
        elif top == "svdcli":
            other = room_of(name)
            if other == room or other not in FLOORS:  # a name of the package itself, such as __version__
                continue
            on_the_ground = FLOORS[other] == floor == 0  # single modules, which may lean on each other
            if FLOORS[other] >= floor and not on_the_ground:
                found.append(f"{where} of floor {FLOORS[other]}, which is not below")
    return found


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=module_name)
def test_imports_only_from_floors_below(path: Path) -> None:
    found = offences(path.read_text(encoding="utf-8"), module_name(path), path.name == "__init__.py")
    assert not found, "\n".join(found)


def test_every_room_is_a_package() -> None:
    rooms = {path.name for path in SOURCE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert rooms <= set(FLOORS)
    assert all((SOURCE / room / "__init__.py").exists() for room in rooms)


@pytest.mark.parametrize(
    ("source", "module", "culprit"),
    [
        ("from svdcli.engine import train", "svdcli.model.unet", "svdcli.engine of floor 4"),
        ("def f():\n    import svdcli.cli.app", "svdcli.engine.train", "svdcli.cli.app of floor 5"),
        ("from svdcli.diffusion.loss import weight", "svdcli.model.unet", "svdcli.diffusion.loss of floor 3"),
        ("from ..diffusion import loss", "svdcli.model.unet", "svdcli.diffusion of floor 3"),
        ("from svdcli import curate", "svdcli.data.clip", "svdcli.curate of floor 4"),
        ("from . import cli", "svdcli", "svdcli.cli of floor 5"),
        ("import rich.table", "svdcli.engine.train", "which only cli may"),
        ("from pydantic import BaseModel", "svdcli.model.unet", "which only recipe may"),
        ("import open3d as o3d", "svdcli.evaluate.views", "which only multiview may"),
        ("from lightning.fabric import Fabric", "svdcli.cli.train", "which only engine may"),
        ("import click", "svdcli.cli.app", "Typer carries its own Click"),
        ("import os", "svdcli.utils.things", "has no floor"),
    ],
)
def test_a_wrong_import_is_named(source: str, module: str, culprit: str) -> None:
    found = offences(source, module, is_package=module == "svdcli")
    assert len(found) == 1
    assert culprit in found[0]


@pytest.mark.parametrize(
    ("source", "module"),
    [
        ("from svdcli.errors import SvdError", "svdcli.recipe.section"),
        ("from .blocks import ResBlock", "svdcli.model.unet"),
        ("from svdcli import __version__", "svdcli.io.manifest"),
        ("import typer\nfrom svdcli.engine import train", "svdcli.cli.train"),
        ("from svdcli.cli.app import main", "svdcli.__main__"),
    ],
)
def test_a_right_import_passes(source: str, module: str) -> None:
    assert offences(source, module) == []
