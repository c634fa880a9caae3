"""From TOML to a recipe: overrides, and the first fault as a sentence with the nearest name that is known."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import ValidationError

from svdcli.errors import RecipeError, UsageError
from svdcli.recipe.section import Section

S = TypeVar("S", bound=Section)


def read_tree(path: Path | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The tree of a TOML recipe, or of the JSON that a run folder keeps of one, with `section.key=value` applied.

    No path is an empty recipe. Raises RecipeError where the file cannot be read, and UsageError for an override that
    is none.
    """
    tree = _read(path) if path else {}
    for override in overrides:
        override_key(tree, override)
    return tree


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        return _from_json(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        hint = f"Give the path of a TOML recipe; a relative one starts at {Path.cwd()}."
        raise RecipeError(f"The recipe {path} cannot be read: {error.strerror}.", hint) from error
    except (tomllib.TOMLDecodeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise RecipeError(f"{path} is not valid {kind}: {error}.", "Mend the line that it names.") from error


def _from_json(text: str) -> dict[str, Any]:
    tree = json.loads(text)
    if not isinstance(tree, dict):
        raise json.JSONDecodeError("no object", text, 0)
    return tree


def override_key(tree: dict[str, Any], override: str) -> None:
    """Set `section.key=value` in the tree; the value is TOML, or a word without quotes. Raises UsageError."""
    key, sign, text = override.partition("=")
    key = key.strip()
    if not sign or not all(key.split(".")):
        raise UsageError(f"--set {override} is not key=value.", "Write for example --set optim.lr=1e-5")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a word without quotes
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise UsageError(
                f"--set {override}: {parent} is not a section.", "See the recipe for its sections."
            )
    tree[last] = value


def parse(recipe: type[S], tree: dict[str, Any], name: str) -> S:
    """A parsed TOML tree, called `name` in errors -> a recipe of that class. Raises RecipeError for its first fault."""
    try:
        text = json.dumps(tree)  # through JSON, since strict mode refuses lists for tuples
    except TypeError as error:
        raise RecipeError(f"{name} holds a date or time, which no key takes.", "Take it out.") from error
    try:
        return recipe.model_validate_json(text)
    except ValidationError as error:
        raise _explain(recipe, error, name) from error


def _explain(recipe: type[Section], error: ValidationError, name: str) -> RecipeError:
    """The first fault as a sentence, and what mends it."""
    first, count = error.errors()[0], error.error_count()
    sections, path = _walk(recipe, first["loc"])
    where, kind = ".".join(path) or "the recipe", first["type"]
    more = f" ({count - 1} more after it)" if count > 1 else ""
    if kind == "extra_forbidden":
        return RecipeError(f"{name}: there is no key {where}{more}.", _nearest(recipe, sections, path))
    if kind == "missing" or kind == "union_tag_not_found":
        where += ".kind" if kind == "union_tag_not_found" else ""
        return RecipeError(f"{name}: the key {where} is missing{more}.", "Add it, or give it with --set.")
    what = first["msg"].removeprefix("Value error, ")
    given = "" if isinstance(first["input"], dict | list) else f" (not {first['input']!r})"
    return RecipeError(
        f"{name}: {where}: {what}{given}{more}.", "Correct the value, in the recipe or by --set."
    )


def _walk(recipe: type[Section], place: tuple[int | str, ...]) -> tuple[list[type[Section]], list[str]]:
    """The sections on the way to a fault, the whole recipe first, and the keys, less the tags of unions."""
    sections, path, kinds = [recipe], [], dict[str, type[Section]]()
    for part in map(str, place):
        if len(kinds) > 1 and part in kinds:
            sections.append(kinds[part])
            kinds = {}
            continue
        path.append(part)
        field = sections[-1].model_fields.get(part)
        kinds = _kinds(field.annotation) if field else {}
        if len(kinds) == 1:
            sections.extend(kinds.values())
    return sections, path


def _kinds(annotation: Any) -> dict[str, type[Section]]:
    """The section that a key holds, or those of its union by their `kind`; none for a plain value."""
    found = {}
    for option in get_args(annotation) or (annotation,):
        if isinstance(option, type) and issubclass(option, Section):
            tag = option.model_fields.get("kind")
            found[get_args(tag.annotation)[0] if tag else ""] = option
    return found


def _nearest(recipe: type[Section], sections: list[type[Section]], path: list[str]) -> str:
    """Names the known key that is nearest to an unknown one, in its own section first."""
    near = difflib.get_close_matches(path[-1], sections[-1].model_fields, n=1)
    if near:
        return f"Did you mean {'.'.join([*path[:-1], near[0]])}?"
    for name, section in _all_sections(recipe, sections):
        if path[-1] in section.model_fields:
            return f"That key belongs into the section {name}."
    return f"Take it out. Known are {', '.join(sections[-1].model_fields)}."


def _all_sections(
    recipe: type[Section], chosen: list[type[Section]], above: str = ""
) -> Iterator[tuple[str, type[Section]]]:
    """Every section by its name; of a union only the one that the recipe chose, or all where it chose none."""
    for key, field in recipe.model_fields.items():
        kinds = list(_kinds(field.annotation).values())
        for section in [kind for kind in kinds if kind in chosen] or kinds:
            yield f"{above}{key}", section
            yield from _all_sections(section, chosen, f"{above}{key}.")
