"""`svd finetune` through `main`: a folder and a bundle in, a bundle out; and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from svdcli.cli.app import main
from svdcli.engine.finetuning import recipe_for
from svdcli.engine.preflight import check
from svdcli.errors import InputError
from svdcli.io.video import write_video
from svdcli.model.bundle import open_bundle
from svdcli.recipe.recipe import load_recipe
from svdcli.shipped import shipped_path

Run = Callable[..., tuple[int, str, str]]
SMALL = (
    "data.width=64",
    "data.height=64",
    "task.num_frames=[4]",
    "run.num_steps=1",
    "machine.accelerator=cpu",
)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """`svd finetune ...` in a folder that holds three clips."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips").mkdir()
    rng = np.random.default_rng(0)
    for number, name in enumerate("abc", start=1):
        tiles = np.kron(rng.integers(0, 255, (8, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
        frames = np.stack([np.roll(tiles, t * number, axis=1) for t in range(12)])
        write_video(tmp_path / "clips" / f"{name}.mp4", frames, 8.0, {}, "mp4")

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main(["finetune", *map(str, arguments)])
        return code, *capfd.readouterr()

    return call


def changes(*more: str) -> list[str]:
    return [word for change in (*SMALL, *more) for word in ("--set", change)]


def test_a_folder_and_a_bundle_make_a_bundle(run: Run, quick_bundle_path: Path) -> None:
    words = ("i2v", "clips", "--from", quick_bundle_path, *changes())
    code, stdout, stderr = run(*words)
    assert code == 0, stderr
    assert "beginning: 1 steps, 2 videos, 1 held out" in stderr and "--bundle runs/i2v-clips/bundle" in stderr
    old, new = open_bundle(quick_bundle_path), open_bundle(Path("runs/i2v-clips/bundle"))
    assert new.task == "i2v" and new.shapes("unet") == old.shapes("unet")
    names = [name for name in old.shapes("unet") if "time_embedding" in name and name.endswith("weight")]
    for name in names:  # one step at a small rate: near, but not the same
        a, b = (files.weights("unet").tensor(name, torch.float32) for files in (old, new))
        assert torch.allclose(a, b, atol=1e-2) and not torch.equal(a, b)
    # the same command has nothing left to do, and more steps go on
    code, stdout, stderr = run(*words, "--set", "run.num_steps=2", "--json")
    assert code == 0, stderr
    facts = json.loads(stdout)
    assert (facts["step"], facts["done"]) == (2, True)


def test_the_bundle_says_shape_and_size(run: Run, quick_bundle_path: Path) -> None:
    code, stdout, stderr = run("i2v", "clips", "--from", quick_bundle_path, *changes(), "--plan", "--json")
    assert code == 0, stderr
    assert not Path("runs").exists()
    assert run("i2v", "clips", "--from", quick_bundle_path, *changes(), "--show-batch", "b.png")[0] == 0
    assert Path("b.png").read_bytes().startswith(b"\x89PNG")


def test_a_lora_of_a_small_network_is_learned_at_half_its_size(run: Run) -> None:
    recipe = recipe_for("camera-lora", "clips", "nano", None, [])
    assert (recipe.data.width, recipe.data.height, recipe.task.num_frames) == (128, 72, (8, 14))
    assert recipe_for("camera-lora", "clips", "nano", None, ["data.width=256"]).data.width == 256
    recipe = recipe_for("i2v", "clips", "nano", None, [])
    assert (recipe.data.width, recipe.data.height, recipe.task.num_frames) == (256, 144, (25,))


def test_text_from_a_bundle_with_words(run: Run, text_bundle_path: Path) -> None:
    Path("clips/a.txt").write_text("a drifting wall of tiles")
    code, stdout, stderr = run("t2v", "clips", "--from", text_bundle_path, "--run", "out", *changes())
    assert code == 0, stderr
    assert open_bundle(Path("out/bundle")).task == "t2v"
    assert "drop_text" in Path("out/recipe.json").read_text()


def test_a_model_of_words_becomes_one_of_pictures_but_gets_no_lora_of_them(
    run: Run, text_bundle_path: Path
) -> None:
    code, _, stderr = run("camera-lora", "clips", "--from", text_bundle_path, *changes())
    assert code == 4 and "is a text-to-video model, not an image-to-video model" in stderr
    recipe = recipe_for("camera-lora", "clips", "nano", None, [f"task.start={text_bundle_path}"])
    with pytest.raises(InputError, match="is a text-to-video model, not an image-to-video model"):
        check(recipe)  # an adapter cannot widen the network that it adapts
    code, _, stderr = run("i2v", "clips", "--from", text_bundle_path, "--run", "out", *changes())
    assert code == 0, stderr
    assert open_bundle(Path("out/bundle")).task == "i2v"


def test_a_recipe_of_the_kind_is_followed(run: Run, quick_bundle_path: Path) -> None:
    recipe = shipped_path("recipes", "nano", "finetune", "i2v.toml")
    code, _, stderr = run("t2v", recipe)
    assert code == 3 and "is a recipe of kind i2v, not t2v" in stderr and "svd finetune i2v" in stderr
    code, _, stderr = run("i2v", shipped_path("recipes", "nano", "i2v.toml"))
    assert code == 2 and "begins with a new network" in stderr and "--from" in stderr
    code, _, stderr = run(
        "i2v", "nano/finetune/i2v", "--set", "data.source=nowhere", "--set", "data.held_out_share=0.5"
    )
    assert code == 4 and "nowhere is not a folder" in stderr


def test_what_cannot_be(run: Run, quick_bundle_path: Path, text_bundle_path: Path) -> None:
    for name in "bc":
        Path(f"clips/{name}.mp4").unlink()
    code, stdout, stderr = run("i2v", "clips", "--from", quick_bundle_path, *changes())
    assert (code, stdout) == (4, "") and "one video, and one has to be kept for evaluation" in stderr
    code, stdout, stderr = run(
        "t2v", "clips", "--from", quick_bundle_path, *changes("data.held_out_share=0.5")
    )
    assert (code, stdout) == (4, "") and "is an image-to-video model, not a text-to-video model" in stderr
    assert "trained with captions" in stderr
    code, _, stderr = run("i2v", "nowhere", "--from", quick_bundle_path, *changes())
    assert code == 4 and "nowhere" in stderr
    code, _, stderr = run("i2v", "clips", "--from", "no-such-bundle")
    assert code == 4 and "no-such-bundle" in stderr
    assert run("orbit", "clips")[0] == 2
    assert not Path("runs").exists()


def test_large_networks_have_the_papers_noise() -> None:
    for kind, noise in (("i2v", (1.0, 1.6)), ("t2v", (0.5, 1.4))):
        recipe = load_recipe(shipped_path("recipes", "finetune", f"{kind}.toml"))
        assert (recipe.task.p_mean, recipe.task.p_std) == noise  # svd-facts §3
        assert recipe.task.block_out_channels == (320, 640, 1280, 1280)


def test_footage_that_stands_still_is_warned_of_and_mixed_rates_are_said(
    run: Run, quick_bundle_path: Path
) -> None:
    for far, (name, fps) in enumerate((("a", 8.0), ("b", 8.0), ("c", 16.0)), 1):
        still = np.full((24, 64, 64, 3), 90, np.uint8)
        still[:23, 20:40, 20:40] = 190
        still[23:, 20:40, 20 + far : 40 + far] = 190  # all that moves, and in the last frame alone
        write_video(Path(f"clips/{name}.mp4"), still, fps, {}, "mp4")
    code, _, stderr = run("i2v", "clips", "--from", quick_bundle_path, *changes(), "--run", "runs/still")
    assert code == 0 and "the model will learn not to move" in stderr, stderr
    assert "frame rates of the videos differ, 8 to 16 a second" in stderr
