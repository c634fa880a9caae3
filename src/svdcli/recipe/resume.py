"""Which keys of a recipe may change when a run is resumed, and which are then named."""

from __future__ import annotations

import json

from svdcli.errors import RecipeError
from svdcli.recipe.recipe import Recipe, parse_recipe

FREE_ON_RESUME = ("run.minutes", "run.num_steps", "run.sample_every", "run.log", "machine")
"""Keys that may change, without a word, when a run is resumed."""
SAID_ON_RESUME = (
    "run.folder",
    "run.checkpoint_every",
    "run.keep",
    "run.keep_every",
    "run.evaluate_every",
    "optim",
    "data.source",
    "task.vae",
    "task.start",
    "task.text",
)
"""Keys that may change when a run is resumed, and are then named. All others began with the run and stay."""
KEPT_ON_RESUME = ("optim.state", "optim.ema", "optim.ema_widths")
"""Those of them that may not after all, since the checkpoint is made by them."""
KEPT_WITH_ADAPTER = ("task.start",)
"""And of a run that trains an adapter, whose checkpoint does not hold the weights that it adapts."""


def resume_recipe(saved: str, given: Recipe) -> tuple[Recipe, list[str]]:
    """The recipe that a run goes on with, and sentences on what changed since it began.

    `saved` is the JSON that the run began with; it wins where `given` leaves a key out. Keys of
    FREE_ON_RESUME come from `given`, those of SAID_ON_RESUME too, and are named. Raises RecipeError for any
    other difference.
    """
    began_with = parse_recipe(json.loads(saved), "the recipe saved with the checkpoint")
    if (began_with.adapter is None) != (given.adapter is None):
        what = ("all weights", "an adapter") if began_with.adapter is None else ("an adapter", "all weights")
        raise RecipeError(
            f"The run in {given.run.folder} trains {what[0]}, and this recipe {what[1]}.",
            "Take the change of the section adapter back, or begin anew in another run.folder.",
        )
    kept = KEPT_ON_RESUME + (KEPT_WITH_ADAPTER if began_with.adapter else ())
    tree, now = began_with.model_dump(mode="json"), given.model_dump(mode="json")
    for key in FREE_ON_RESUME:
        section, _, name = key.partition(".")
        if name:
            tree[section][name] = now[section][name]
        else:
            tree[section] = now[section]
    changes = []
    for section, values in given.model_dump(mode="json", exclude_unset=True).items():
        for name, value in (values or {}).items():
            key, old = f"{section}.{name}", tree[section].get(name)
            if old == value:
                continue
            if key in kept or not _covers(SAID_ON_RESUME, key):
                began = f"The run in {given.run.folder} began with {key} = {json.dumps(old)}"
                raise RecipeError(
                    f"{began}, not {json.dumps(value)}.",
                    "Take the change back to resume it, or begin anew in another run.folder.",
                )
            tree[section][name] = value
            changes.append(f"{key} is now {json.dumps(value)}; the run began with {json.dumps(old)}")
    return parse_recipe(tree, "the recipe saved with the checkpoint"), changes


def _covers(keys: tuple[str, ...], key: str) -> bool:
    return key in keys or key.partition(".")[0] in keys
