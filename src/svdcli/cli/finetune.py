"""`svd finetune`: your own videos and a bundle in, a bundle of your own out."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from svdcli.cli.recipes import find_recipe
from svdcli.cli.train import Wish, act, changed, write_page
from svdcli.errors import RecipeError, UsageError

if TYPE_CHECKING:
    from svdcli.recipe.recipe import Recipe

Kind = StrEnum(
    "Kind",
    {"i2v": "i2v", "t2v": "t2v", "interp": "interp", "multiview": "multiview", "camera_lora": "camera-lora"},
)
HELP_KIND = "What is learned: motion from a picture, from words, between two frames, an object's other sides, or one camera move."
HELP_SOURCE = "A folder of videos, shards or orbits, a URL of shards, a TOML recipe, or the folder of a run."
HELP_FROM = "The bundle to go on from: a name, folder, file or hub id; else the best one here."
HELP_SET = "Change a key of the recipe: --set optim.lr=1e-5"
HELP_RUN = "Where checkpoints and the result go; else runs/KIND-NAME. The same command resumes there."

HELP_PUSH = "Put the finished model there, with a card written from the run; asked for before training, done after it."


def register(app: typer.Typer) -> None:
    app.command()(finetune)


def finetune(
    kind: Annotated[Kind, typer.Argument(help=HELP_KIND)],
    source: Annotated[str, typer.Argument(metavar="DATA_OR_RECIPE", help=HELP_SOURCE)],
    bundle: Annotated[str | None, typer.Option("--from", metavar="REF", help=HELP_FROM)] = None,
    run: Annotated[Path | None, typer.Option(metavar="FOLDER", help=HELP_RUN)] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help=HELP_SET)] = None,
    minutes: Annotated[float | None, typer.Option(help="Save and stop after this long; the same command goes on.")] = None,
    show_batch: Annotated[Path | None, typer.Option(metavar="OUT.png", help="Draw what the network is fed.")] = None,
    show_step: Annotated[int, typer.Option(min=0, help="The step that --show-batch draws.")] = 0,
    plan: Annotated[bool, typer.Option("--plan", help="Say what it would cost, and train nothing.")] = False,
    report: Annotated[bool, typer.Option("--report", help="Write the run so far as one page, and train nothing.")] = False,
    push_to_hub: Annotated[str | None, typer.Option(metavar="OWNER/NAME", help=HELP_PUSH)] = None,
    private: Annotated[bool, typer.Option("--private", help="A new repository of --push-to-hub is seen by you alone.")] = False,
) -> None:  # fmt: skip
    """Teach a model your footage: from a folder of videos with good defaults, or by a recipe."""
    command = typed(kind, source, bundle, run)
    changes = changed(set_, minutes)
    if is_recipe(source):
        found = find_recipe(source)
        if found.run and report:
            return write_page(found.run, command)
        if bundle is not None:
            changes += [f"task.start={bundle}"]
        recipe = by_recipe(kind, found.path, changes + ([f"run.folder={run}"] if run else []))
        told = f"recipe: {found}"
    else:
        from svdcli.engine.finetuning import recipe_for

        recipe = recipe_for(kind.value, source, bundle, run, changes)
        told = f"{recipe.data.location} upon {recipe.task.start}, by the shipped defaults"
    act(recipe, command, Wish(show_batch, show_step, plan, report, push_to_hub, private), told)


def is_recipe(source: str) -> bool:
    """Whether it says how to train, not what on: a TOML file, a run folder, or the name of a shipped recipe."""
    from svdcli.cli.recipes import RESOLVED, shipped_recipes

    path = Path(source)
    if path.is_dir():
        return (path / RESOLVED).is_file()
    return path.suffix == ".toml" or (not path.exists() and source in shipped_recipes())


def by_recipe(kind: Kind, path: Path, changes: list[str]) -> Recipe:
    """The recipe, if it is of that kind."""
    from svdcli.recipe.recipe import load_recipe

    recipe = load_recipe(path, changes)
    own = recipe.task.kind if recipe.adapter is None else "camera-lora"
    if own != kind.value:
        raise RecipeError(
            f"{path} is a recipe of kind {own}, not {kind.value}.",
            f"svd finetune {own} {path}" if own in set(Kind) else f"svd train {path}",
        )
    if recipe.task.start is None:
        raise UsageError(
            f"{path} begins with a new network, so there is nothing to finetune.",
            f"svd train {path}, or name the bundle to go on from: --from REF",
        )
    return recipe


def typed(kind: Kind, source: str, bundle: str | None, run: Path | None) -> str:
    """The command, to be typed again."""
    words = ["svd", "finetune", kind.value, source]
    words += ["--from", bundle] if bundle else []
    words += ["--run", str(run)] if run else []
    return shlex.join(words)
