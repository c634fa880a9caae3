"""Recipes: a closed vocabulary, faults named, overrides, what may change on resume, the shipped ones."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from svdcli.errors import RecipeError, UsageError
from svdcli.recipe.curation import is_curation
from svdcli.recipe.recipe import Recipe, load_recipe, parse_recipe
from svdcli.recipe.resume import resume_recipe

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
TREE: dict[str, Any] = {
    "task": {
        "kind": "vae",
        "block_out_channels": [8, 16],
        "norm_num_groups": 4,
        "latent_channels": 4,
        "crop": 32,
    },
    "data": {"source": "clips", "held_out": ["a*"], "width": 64, "height": 64},
    "optim": {"lr": 1e-3},
    "run": {"folder": "runs/a", "num_steps": 10, "batch_size": 2},
}
I2V: dict[str, Any] = {
    "kind": "i2v",
    "vae": "runs/vae",
    "block_out_channels": [16, 32],
    "norm_num_groups": 8,
    "num_attention_heads": [1, 2],
    "attention_levels": [False, True],
    "context_dim": 16,
    "num_frames": [4],
    "fps": [5.0, 9.0],
}


def changed(key: str, value: Any, task: dict[str, Any] | None = None) -> dict[str, Any]:
    tree = copy.deepcopy(TREE | ({"task": task} if task else {}))
    section, _, name = key.partition(".")
    tree[section][name] = value
    return tree


def fault(tree: dict[str, Any]) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(tree, "r.toml")
    assert caught.value.exit_code == 3
    return caught.value


def test_defaults_and_paths() -> None:
    recipe = parse_recipe(TREE, "r.toml")
    assert recipe.run.folder == Path("runs/a") and recipe.task.kind == "vae"
    assert recipe.machine.devices == 1 and recipe.optim.betas == (0.9, 0.99)
    assert recipe.task.downscale == 2


def test_recipes_are_frozen() -> None:
    recipe = parse_recipe(TREE, "r.toml")
    with pytest.raises(ValidationError, match="frozen"):
        recipe.optim.lr = 2.0


@pytest.mark.parametrize(
    ("key", "said", "hint"),
    [
        ("optim.learning_rat", "no key optim.learning_rat", "Known are lr"),
        ("optim.warmup_step", "no key optim.warmup_step", "Did you mean optim.warmup_steps?"),
        ("task.crops", "no key task.crops", "Did you mean task.crop?"),
        ("run.lr", "no key run.lr", "belongs into the section optim"),
        ("task.fps", "no key task.fps", "Known are kind"),
    ],
)
def test_an_unknown_key_is_named_with_its_neighbour(key: str, said: str, hint: str) -> None:
    error = fault(changed(key, 1))
    assert said in error.message and hint in error.hint


def test_an_unknown_section_is_named() -> None:
    error = fault(TREE | {"optin": {"lr": 1.0}})
    assert "no key optin" in error.message and error.hint == "Did you mean optim?"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("optim.lr", "fast", "optim.lr: Input should be a valid number (not 'fast')"),
        ("optim.lr", "1e-3", "optim.lr"),
        ("optim.lr", float("nan"), "optim.lr: Input should be a finite number"),
        ("optim.lr", float("inf"), "optim.lr: Input should be a finite number"),
        ("optim.lr", 0.0, "optim.lr: Input should be greater than 0"),
        ("optim.betas", [0.9, 1.0], "optim.betas.1: Input should be less than 1"),
        ("optim.ema_decay", 1.0, "optim.ema_decay"),
        ("run.num_steps", 1.5, "run.num_steps: Input should be a valid integer"),
        ("run.num_steps", True, "run.num_steps"),
        ("data.width", 60, "data.width"),
        ("task.crop", 36, "task.crop: Input should be a multiple of 8"),
        ("task.crop", 72, "task.crop = 72 does not fit"),
        ("data.sampling", "shuffle", "draws its crops from any video: leave out data.sampling"),
        ("task.norm_num_groups", 3, "8 of block_out_channels is no multiple of norm_num_groups = 3"),
        ("task.block_out_channels", [8, 8, 8, 8, 8], "multiples of 16"),
        ("task.block_out_channels", [], "a level at least"),
    ],
)
def test_a_wrong_value_is_named(key: str, value: Any, said: str) -> None:
    tree = changed(key, value)
    if key == "task.block_out_channels":
        tree["data"]["height"] = 72
    assert said in fault(tree).message


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("task.num_attention_heads", [1], "num_attention_heads needs 2 values"),
        ("task.attention_levels", [True] * 3, "attention_levels needs 2 values"),
        ("task.num_attention_heads", [3, 2], "16 channels cannot be shared among 3"),
        ("task.num_frames", [4, 1], "2 frames or more"),
        ("task.fps", [9.0, 5.0], "fps must be a range"),
        ("task.fps", [0.0, 5.0], "fps must be a range"),
        ("task.drop_both", 0.95, "may not exceed 1 together"),
        ("task.sampler", "eular", "task.sampler: Input should be 'euler'"),
    ],
)
def test_a_wrong_value_of_image_to_video_is_named(key: str, value: Any, said: str) -> None:
    assert said in fault(changed(key, value, I2V)).message


def test_a_missing_key_is_named() -> None:
    tree = copy.deepcopy(TREE)
    del tree["optim"]["lr"]
    assert "the key optim.lr is missing" in fault(tree).message
    task = {name: value for name, value in I2V.items() if name != "vae"}
    assert "the key task.vae is missing" in fault(TREE | {"task": task}).message
    del tree["task"]["kind"]
    assert "the key task.kind is missing (1 more after it)" in fault(tree).message


def test_overrides(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text(
        '[task]\nkind="vae"\nblock_out_channels=[8]\nnorm_num_groups=4\nlatent_channels=4\ncrop=32\n'
        '[data]\nsource="clips"\nwidth=64\nheight=64\n[optim]\nlr=1e-3\n'
        '[run]\nfolder="runs/a"\nnum_steps=10\nbatch_size=2\n'
    )
    given = ["optim.lr=1e-5", "run.folder=runs/b c", "task.block_out_channels=[8, 16]", "machine.devices=2"]
    recipe = load_recipe(file, given)
    assert recipe.optim.lr == 1e-5 and recipe.run.folder == Path("runs/b c")
    assert recipe.task.block_out_channels == (8, 16) and recipe.machine.devices == 2
    for override, hint in (("optim.lr", "--set optim.lr=1e-5"), ("=3", "--set"), ("a..b=3", "--set")):
        with pytest.raises(UsageError, match="is not key=value") as caught:
            load_recipe(file, [override])
        assert hint in caught.value.hint
    with pytest.raises(UsageError, match="kind is not a section"):
        load_recipe(file, ["task.kind.x=3"])
    for override in ("optim.lr=nan", "run.minutes=0", "optim.lrr=1", "optim.lr=2020-01-01"):
        with pytest.raises(RecipeError):
            load_recipe(file, [override])


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read") as caught:
        load_recipe(tmp_path / "none.toml")
    assert str(Path.cwd()) in caught.value.hint
    (tmp_path / "broken.toml").write_text("[task\n")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    for name in ("broken", "bytes"):
        with pytest.raises(RecipeError, match="not valid TOML"):
            load_recipe(tmp_path / f"{name}.toml")


TRAINING = sorted(path for path in RECIPES.rglob("*.toml") if not is_curation(path))


@pytest.mark.parametrize("path", TRAINING, ids=lambda p: p.stem)
def test_every_shipped_recipe_passes(path: Path) -> None:
    recipe = load_recipe(path)
    finetunes = path.parent.name == "finetune"
    command = f"svd finetune {path.stem} " if finetunes else f"svd train recipes/{path.relative_to(RECIPES)}"
    assert command in path.read_text()  # opens with its command
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_there_are_shipped_recipes() -> None:
    assert list(RECIPES.rglob("*.toml"))


# ---- resuming ------------------------------------------------------------------------------------------


def resumed(key: str, value: Any) -> tuple[Recipe, list[str]]:
    saved = parse_recipe(changed("run.minutes", 5.0), "r.toml").model_dump_json()
    return resume_recipe(saved, parse_recipe(changed(key, value), "r.toml"))


def test_the_same_recipe_resumes_without_a_word() -> None:
    recipe, changes = resumed("run.num_steps", 10)
    assert changes == [] and recipe.run.minutes is None  # a limit holds for the command that it was given to


@pytest.mark.parametrize(
    ("key", "value"), [("run.num_steps", 20), ("run.minutes", 1.0), ("machine", {"devices": 2})]
)
def test_free_keys_change_in_silence(key: str, value: Any) -> None:
    tree = TREE | {"machine": value} if key == "machine" else changed(key, value)
    given = parse_recipe(tree, "r.toml")
    recipe, changes = resume_recipe(parse_recipe(TREE, "r.toml").model_dump_json(), given)
    assert changes == [] and recipe == given


@pytest.mark.parametrize(("key", "value"), [("optim.lr", 5e-4), ("data.source", "moved")])
def test_some_changes_are_said(key: str, value: Any) -> None:
    recipe, (change,) = resumed(key, value)
    section, _, name = key.partition(".")
    assert recipe.model_dump(mode="json")[section][name] == value
    assert change.startswith(f"{key} is now {json.dumps(value)}")


@pytest.mark.parametrize(
    ("key", "value"), [("data.width", 128), ("run.batch_size", 3), ("run.seed", 1), ("task.crop", 40)]
)
def test_other_changes_are_refused(key: str, value: Any) -> None:
    with pytest.raises(RecipeError, match=f"The run in runs/a began with {key}") as caught:
        resumed(key, value)
    assert "another run.folder" in caught.value.hint


def test_the_saved_recipe_wins_where_the_new_one_is_silent() -> None:
    saved = parse_recipe(changed("optim.ema_decay", 0.5), "r.toml").model_dump_json()
    recipe, changes = resume_recipe(saved, parse_recipe(TREE, "r.toml"))
    assert recipe.optim.ema_decay == 0.5 and changes == []
