"""The README promises two commands and some files: CI runs the one, and the files are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from svdcli.cli.app import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SET_UP = README.partition("## Set up")[2].partition("\n## ")[0]


def test_two_commands_set_up_everything() -> None:
    commands = re.findall(r"```sh\n(.*?)\n```", SET_UP, re.DOTALL)
    assert len(commands) == 2
    assert all("\n" not in command for command in commands)
    assert "-c constraints.txt . " in commands[0] and "svd sample assets/" in commands[0]
    assert commands[1].endswith("/nox")


def test_ci_runs_the_test_command_of_the_readme() -> None:
    steps = re.findall(r"```sh\n(.*?)\n```", SET_UP, re.DOTALL)[1].replace(".venv", "VENV").split(" && ")
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").replace('"$room/venv/', "VENV/")
    script = script.replace('"$room/venv"', "VENV").replace('"', "").replace(" --quiet", "")
    missing = [step for step in steps if step not in script]
    assert not missing


def test_every_file_it_names_is_here() -> None:
    paths = set(re.findall(r"\]\(((?!http)[^)]+)\)", README)) | set(re.findall(r"assets/\S+\.png", README))
    assert len(paths) > 5
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_in_its_table(command: str) -> None:
    assert f"| `svd {command}" in README
