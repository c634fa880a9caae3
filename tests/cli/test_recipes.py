"""`svd recipes` through `main`: what ships is listed, right, and can be copied."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from svdcli.cli.app import main
from svdcli.cli.recipes import find_recipe, shipped_recipes
from svdcli.errors import RecipeError
from svdcli.io.video import write_video

Run = Callable[..., tuple[int, str, str]]
SHIPPED = sorted(shipped_recipes())


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`svd recipes ...` in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(["recipes", *arguments])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_passes_check(run: Run, name: str) -> None:
    code, stdout, stderr = run("check", name)
    assert code == 0, stderr
    assert stdout.startswith(f"{name} is a recipe: ")
    assert f"recipe: {name}, as it ships with svd" in stderr
    run_it = "svd curate run SRC OUT --recipe" if name.endswith("curate") else "svd train"
    assert stderr.splitlines()[-1] == f"next: {run_it} {name}"


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_says_what_it_does_and_how_to_run_it(run: Run, name: str) -> None:
    first, *others = shipped_recipes()[name].read_text(encoding="utf-8").splitlines()
    assert first.startswith("# ")
    assert any(
        line.startswith(("#   svd train ", "#   svd finetune ", "#   svd curate run ")) for line in others[:6]
    )
    line = next(line for line in run("list")[1].splitlines() if line.split()[0] == name)
    assert first.lstrip("# ").rstrip(" :.") in line


def test_list_as_json(run: Run) -> None:
    found = json.loads(run("list", "--json")[1])["recipes"]
    assert [row["name"] for row in found] == SHIPPED and {"nano/vae", "nano/i2v"} <= set(SHIPPED)
    assert all(Path(row["path"]).is_file() for row in found)


def test_show_prints_the_file_and_nothing_else(run: Run) -> None:
    code, stdout, _ = run("show", "nano/vae")
    text = shipped_recipes()["nano/vae"].read_text(encoding="utf-8")
    assert (code, stdout) == (0, text) and tomllib.loads(stdout)["task"]["kind"] == "vae"
    assert json.loads(run("show", "recipes/nano/vae.toml", "--json")[1])["text"] == text


def test_a_path_wins_over_a_name_and_a_run_folder_stands_for_its_recipe(run: Run, tmp_path: Path) -> None:
    assert find_recipe("nano/vae").shipped == "nano/vae"
    (tmp_path / "nano").mkdir()
    (tmp_path / "nano" / "vae").write_text("mine")
    assert find_recipe("nano/vae").shipped is None
    (tmp_path / "runs").mkdir()
    resolved = json.loads(run("check", "nano/i2v", "--json", "--set", "run.num_steps=7")[1])["recipe"]
    (tmp_path / "runs" / "recipe.json").write_text(json.dumps(resolved))
    code, stdout, _ = run("check", "runs", "--json")
    assert code == 0 and json.loads(stdout)["recipe"] == resolved and resolved["run"]["num_steps"] == 7


def test_unknown_names_bring_the_nearest(run: Run) -> None:
    for given, near in (("nano/vea", "nano/vae"), ("i2v", "finetune/i2v or nano/finetune/i2v or nano/i2v")):
        code, stdout, stderr = run("show", given)
        assert (code, stdout) == (3, "") and f"Did you mean {near}?" in stderr
    with pytest.raises(RecipeError, match="neither a file nor a shipped name"):
        find_recipe("zzz")


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ("optim.lrr=1", 3, "there is no key optim.lrr. Did you mean optim.lr?"),
        ("run.num_steps=0", 3, "run.num_steps: Input should be greater than 0"),
        ("run.log=['tensorbord']", 3, "run.log"),
        ("run.sample_every=0", 3, "run.sample_every"),
        ("run", 2, "is not key=value"),
    ],
)
def test_check_says_what_is_wrong(run: Run, change: str, code: int, said: str) -> None:
    got, stdout, stderr = run("check", "nano/vae", "--set", change)
    assert (got, stdout) == (code, "")
    lines = stderr.splitlines()
    assert len(lines) == 2 and said in f"{lines[0][7:]} {lines[1][6:]}"


def test_a_recipe_of_curation_is_checked_as_one(run: Run) -> None:
    recipe = json.loads(run("check", "curate", "--json", "--set", "split.clipping=exact")[1])["recipe"]
    assert recipe["split"]["clipping"] == "exact" and recipe["filter"]["motion"]["drop"] == "lowest 25%"
    code, _, stderr = run("check", "curate", "--set", "split.cliping=exact")
    assert code == 3 and "Did you mean split.clipping?" in stderr
    code, _, stderr = run("check", "curate", "--here")
    assert code == 2 and "--plan" in stderr
    assert run("copy", "curate", "mine.toml")[2].splitlines()[-1] == (
        "next: svd curate run SRC OUT --recipe mine.toml"
    )


def test_the_shipped_curation_is_the_defaults() -> None:
    from svdcli.recipe.curation import load_curation

    assert load_curation(shipped_recipes()["curate"]) == load_curation(None)


def test_check_here_looks_at_this_machine_and_leaves_nothing(run: Run, tmp_path: Path) -> None:
    assert (
        run("check", "nano/i2v")[0] == 0
    )  # its dataset and autoencoder are not here, and that is no fault of it
    code, _, stderr = run("check", "nano/i2v", "--here", "--set", "data.source=none")
    assert code == 4 and "The dataset none is not a folder" in stderr
    (tmp_path / "clips").mkdir()
    frames = np.zeros((2, 64, 64, 3), np.uint8)
    for name in "ab":
        write_video(tmp_path / "clips" / f"{name}.mp4", frames, 8.0, {}, "mp4")
    changes = ("--set", "data.source=clips", "--set", "data.held_out=['b*']")
    code, stdout, _ = run("check", "nano/i2v", "--here", *changes)
    assert code == 0 and stdout.splitlines()[1] == "this machine can run it: 1 videos, 1 held out"
    code, _, stderr = run("check", "nano/i2v", "--here", *changes, "--set", "machine.accelerator=cuda")
    assert code == 5 or "CUDA" not in stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clips"]


def test_copy_never_replaces_unasked(run: Run, tmp_path: Path) -> None:
    text = shipped_recipes()["nano/vae"].read_text(encoding="utf-8")
    code, stdout, stderr = run("copy", "nano/vae", "mine.toml")
    assert (code, stdout) == (0, "mine.toml\n") and (tmp_path / "mine.toml").read_text() == text
    assert stderr.splitlines()[-1] == "next: svd train mine.toml"
    (tmp_path / "mine.toml").write_text("changed by me")
    code, stdout, stderr = run("copy", "nano/vae", "mine.toml")
    assert (code, stdout) == (2, "") and "already exists" in stderr and "--overwrite" in stderr
    assert (tmp_path / "mine.toml").read_text() == "changed by me"
    assert run("copy", "nano/vae", "mine.toml", "--overwrite")[0] == 0
    assert (tmp_path / "mine.toml").read_text() == text
    (tmp_path / "here").mkdir()
    assert run("copy", "nano/vae", "here")[1] == f"{Path('here/vae.toml')}\n"
    code, _, stderr = run("copy", "nano/vae", "none/mine.toml")
    assert code == 2 and "There is no folder" in stderr
    code, _, stderr = run("copy", "mine.toml", ".", "--overwrite")
    assert code == 2 and "that recipe itself" in stderr and (tmp_path / "mine.toml").read_text() == text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["here", "mine.toml"]


def test_a_recipe_that_is_no_text_is_a_recipe_error(run: Run, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_bytes(b"\xff\xfe\x00")
    for verb in (("show", "r.toml"), ("check", "r.toml"), ("copy", "r.toml", "x.toml")):
        code, _, stderr = run(*verb)
        assert code == 3 and stderr.startswith("error: ")
    (tmp_path / "r.json").write_text("[1]")
    code, _, stderr = run("check", "r.json")
    assert code == 3 and "not valid JSON" in stderr
