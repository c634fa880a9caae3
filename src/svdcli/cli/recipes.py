"""`svd recipes`: the training recipes that ship with svd; list, read, check and copy them."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from svdcli.cli.console import out, table
from svdcli.errors import RecipeError, UsageError

if TYPE_CHECKING:
    from svdcli.recipe.recipe import Recipe

RECIPE = Annotated[
    str, typer.Argument(metavar="NAME", help="A shipped recipe, such as nano/vae, or the path of one.")
]
CHANGES = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe: --set optim.lr=1e-5"),
]
RESOLVED = "recipe.json"  # what a run folder keeps of the recipe that it was begun with


@dataclass(frozen=True)
class Found:
    """Where a recipe lies."""

    path: Path
    shipped: str | None = None
    """its name among those that ship with svd"""
    run: Path | None = None
    """the run folder that was given for it"""

    def __str__(self) -> str:
        return f"{self.shipped}, as it ships with svd ({self.path})" if self.shipped else str(self.path)


def register(app: typer.Typer) -> None:
    group = typer.Typer(
        no_args_is_help=True,
        rich_markup_mode=None,
        help="List, show, check and copy recipes of training and curation.",
    )
    for command in (list_recipes, show, check, copy):
        group.command(name=command.__name__.removesuffix("_recipes"))(command)
    app.add_typer(group, name="recipes")


# ---- commands


def list_recipes() -> None:
    """Show the recipes that ship with svd, one a line."""
    rows = [{"name": name, "about": _about(path), "path": path} for name, path in shipped_recipes().items()]
    out.result(
        {"recipes": rows},
        table([[str(row["name"]), str(row["about"])] for row in rows], header=("name", "what it is")),
    )
    if rows:
        out.next(f"svd recipes show {rows[0]['name']}")


def show(name: RECIPE) -> None:
    """Print a recipe as it is written."""
    found = find_recipe(name)
    text = _read(found.path)
    out.say(f"recipe: {found}")
    out.result({"name": found.shipped, "path": found.path, "text": text}, text.rstrip("\n"))


def check(
    name: RECIPE,
    set_: CHANGES = None,
    here: Annotated[
        bool,
        typer.Option("--here", help="Also check this machine: devices, dataset, loggers. Needs no weights."),
    ] = False,
) -> None:
    """Say whether a recipe is right: every key, every value. Runs nothing."""
    from svdcli.recipe.curation import is_curation
    from svdcli.recipe.recipe import load_recipe

    found = find_recipe(name)
    if is_curation(found.path):
        _check_curation(name, found, set_ or [], here)
        return
    recipe = load_recipe(found.path, set_ or [])
    out.say(f"recipe: {found}")
    facts: dict[str, Any] = {
        "name": found.shipped,
        "path": found.path,
        "recipe": recipe.model_dump(mode="json"),
    }
    lines = [f"{name} is a recipe: {_summary(recipe)}"]
    if here:
        from svdcli.engine.preflight import check_surroundings

        kept, apart = check_surroundings(recipe)
        facts |= {"num_videos": kept, "num_held_out": apart}
        lines.append(f"this machine can run it: {kept} videos, {apart} held out")
    out.result(facts, lines)
    out.next(_use(name, found.path))


def _check_curation(name: str, found: Found, changes: list[str], here: bool) -> None:
    from svdcli.recipe.curation import load_curation

    if here:
        raise UsageError(
            f"{name} is a recipe of curation, and --here looks for what training needs.",
            "Say what it would take here: svd curate run SRC OUT --plan",
        )
    recipe = load_curation(found.path, changes)
    out.say(f"recipe: {found}")
    facts = {"name": found.shipped, "path": found.path, "recipe": recipe.model_dump(mode="json")}
    drops = ", ".join(f"{axis} {settings.drop}" for axis, settings in recipe.filter.axes.items())
    out.result(
        facts, f"{name} is a recipe: curation by {recipe.split.clipping} clips, dropping {drops or 'nothing'}"
    )
    out.next(_use(name, found.path))


def copy(
    name: RECIPE,
    destination: Annotated[
        Path, typer.Argument(metavar="DEST", help="A file, or a folder to put it into under its own name.")
    ],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> None:
    """Copy a recipe, to be changed by you."""
    from svdcli.io.files import atomic_path

    found = find_recipe(name)
    target = destination / found.path.name if destination.is_dir() else destination
    text = _read(found.path)
    if target.exists() and target.samefile(found.path):
        raise UsageError(f"{target} is that recipe itself.", "Choose another destination.")
    if target.exists() and not overwrite:
        raise UsageError(f"{target} already exists.", "Pass --overwrite, or choose another destination.")
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
    out.result({"name": found.shipped, "path": target}, str(target))
    out.next(_use(str(target), found.path))


# ---- names


def shipped_recipes() -> dict[str, Path]:
    """Name -> path of every recipe that ships with svd, such as nano/vae, in the order of their names."""
    from svdcli.shipped import shipped_path

    home = shipped_path("recipes")
    named = {path.relative_to(home).with_suffix("").as_posix(): path for path in home.rglob("*.toml")}
    return dict(sorted(named.items()))


def find_recipe(given: str) -> Found:
    """The recipe at a path, of a run folder, or of a shipped name (nano/vae, nano/vae.toml, recipes/nano/vae.toml).

    A path wins over a name. Raises RecipeError, which names the nearest one, where there is neither.
    """
    path = Path(given)
    if (path / RESOLVED).is_file():
        return Found(path / RESOLVED, run=path)
    if path.is_file():
        return Found(path)
    known = shipped_recipes()
    name = path.as_posix().removesuffix(".toml").removeprefix("recipes/")
    if name in known:
        return Found(known[name], name)
    near = [key for key in known if Path(key).name == name] or difflib.get_close_matches(name, known, n=1)
    where = f"a relative path starts at {Path.cwd()}"
    hint = (
        f"Did you mean {' or '.join(near)}?"
        if near
        else f"`svd recipes list` shows those that ship with svd; {where}."
    )
    raise RecipeError(f"There is no recipe {given}, neither a file nor a shipped name.", hint)


def _about(path: Path) -> str:
    """The first comment of a recipe, its first line."""
    for line in _read(path).splitlines():
        if line.startswith("#"):
            return line.lstrip("# ").rstrip(" :.")
        if line.strip():
            break
    return ""


def _summary(recipe: Recipe) -> str:
    data, run = recipe.data, recipe.run
    size = f"{data.width}x{data.height}"
    return f"{recipe.task.kind}, {run.num_steps} steps of {run.batch_size * run.accumulate} at {size}, into {run.folder}"


def _use(name: str, path: Path) -> str:
    """The command that runs a recipe."""
    from svdcli.recipe.curation import is_curation

    return f"svd curate run SRC OUT --recipe {name}" if is_curation(path) else f"svd train {name}"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise RecipeError(
            f"The recipe {path} cannot be read: {reason}.", "Check its name and rights."
        ) from error
