"""The names of what a command writes: from `--output`, the inputs and the seeds to one path per result."""

from __future__ import annotations

import os
import re
import string
from collections.abc import Sequence
from pathlib import Path

from svdcli.errors import UsageError

SUFFIXES = {"mp4": ".mp4", "gif": ".gif", "webp": ".webp", "png": "", "latents": ".safetensors"}
"""File suffix of each kind of output; `png` is a folder of frames."""

FIELDS = ("name", "seed", "index", "bundle")


def output_paths(
    output: str | Path | None,
    inputs: Sequence[Path | str],
    seeds: Sequence[int],
    kind: str,
    default_folder: str | Path,
    *,
    bundle: str = "",
    overwrite: bool = False,
) -> list[Path]:
    """One path per result, input by input and within one input seed by seed.

    `output` is a file (one result only), a folder (it exists, ends in a separator or has no suffix) or a
    template with {name} {seed} {index} {bundle}, format specs such as {index:03d} allowed; None is
    `default_folder`. In a folder the name is `{name}-{seed}`. An input that is a `Path` is named by its
    stem, a `str` (a prompt) by its words. Raises UsageError for a bad template, a suffix of another kind,
    two results of one name, a result that would replace an input, and, unless `overwrite`, one that exists.
    """
    pattern = _pattern(output, kind, Path(default_folder), len(inputs) * len(seeds))
    paths: list[Path] = []
    for source in inputs:
        for seed in seeds:
            values = {
                "name": _name(source),
                "seed": seed,
                "index": len(paths),
                "bundle": _safe(bundle) or "model",
            }
            paths.append(_fill(pattern, values))
    _refuse_collisions(paths, str(output) if output is not None else None)
    _refuse_inputs(paths, [source for source in inputs if isinstance(source, Path)])
    if not overwrite:
        _refuse_existing(paths)
    return paths


def kind_of(output: str | Path | None) -> str | None:
    """The kind that the suffix of `output` asks for, or None where it has none that we write."""
    suffix = Path(output).suffix.lower() if output else ""
    return next((kind for kind, known in SUFFIXES.items() if known and known == suffix), None)


def _pattern(output: str | Path | None, kind: str, default_folder: Path, num_results: int) -> str:
    """`output` as a template with the right suffix."""
    suffix = SUFFIXES[kind]
    if output is None:
        return _escape(default_folder) + f"/{{name}}-{{seed}}{suffix}"
    text = os.path.expanduser(str(output))
    if not text.strip():
        raise UsageError(
            "The output name is empty.", "Give a file, a folder or a template such as out/{name}.mp4."
        )
    is_template = "{" in text or "}" in text
    if is_template and not os.path.lexists(text):
        _check_template(text)
        return _with_suffix(text, kind)
    path = Path(text)
    ends_open = text.endswith(("/", os.sep))
    if kind == "png" and not ends_open and num_results == 1 and not path.is_dir():
        return _with_suffix(_escape(path), kind)
    if path.is_dir() or ends_open or not path.suffix:
        return _escape(path) + f"/{{name}}-{{seed}}{suffix}"
    return _with_suffix(_escape(path), kind)


def _escape(path: Path) -> str:
    return str(path).replace("{", "{{").replace("}", "}}")


def _with_suffix(pattern: str, kind: str) -> str:
    """Add the suffix of `kind` where the pattern has none; refuse that of another kind."""
    wanted = SUFFIXES[kind]
    if pattern.lower().endswith(wanted) and wanted:
        return pattern
    last = pattern.replace("\\", "/").rsplit("/", 1)[-1]
    found = re.sub(r"\{[^{}]*\}", "x", last)
    suffix = Path(found).suffix
    if kind == "png" and suffix.lower() == ".png":
        raise UsageError(
            f"{_shown(pattern)} is a file name, but frames are written as a folder of png files.",
            f"Name a folder: {_shown(pattern[:-4])}",
        )
    if suffix and suffix != wanted and (suffix[1:].isalpha() or kind_of(found)):
        other = kind_of(found)
        hint = (
            f"Ask for the kind {other}, or name it {wanted or 'without a suffix'}."
            if other
            else (f"Name it {wanted}." if wanted else "Name a folder, without a suffix.")
        )
        raise UsageError(f"{_shown(pattern)} does not end as a {kind} output does.", hint)
    return pattern + wanted


def _shown(pattern: str) -> str:
    return pattern.replace("{{", "{").replace("}}", "}")


def _check_template(text: str) -> None:
    known = " ".join(f"{{{field}}}" for field in FIELDS)
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError as error:
        raise UsageError(
            f"The output template {text} has an unmatched brace.", f"The fields are {known}."
        ) from error
    for _, field, spec, conversion in parts:
        if field is None:
            continue
        if field not in FIELDS or conversion or "{" in (spec or ""):
            raise UsageError(
                f"The output template has an unknown field {{{field}}}.", f"The fields are {known}."
            )


def _fill(pattern: str, values: dict[str, object]) -> Path:
    try:
        return Path(pattern.format(**values))
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"The output template {_shown(pattern)} cannot be filled: {error}.",
            "Write numbers as {index:03d}.",
        ) from error


def _name(source: Path | str) -> str:
    if isinstance(source, Path):
        return _safe(source.stem or source.name) or "input"
    return _safe("-".join(re.findall(r"\w+", source.lower())))[:60].rstrip("-") or "prompt"


def _safe(text: str) -> str:
    """`text` as a part of a file name: no separators, no leading dot (that would hide it)."""
    return re.sub(r"[/\\:*?\"<>|\x00-\x1f]+", "-", text).strip(" .-")


def _refuse_collisions(paths: list[Path], output: str | None) -> None:
    first: dict[str, int] = {}
    for index, path in enumerate(paths):
        key = os.path.normcase(os.path.abspath(path))
        if key in first:
            where = f"--output {output}" if output is not None else "the default name"
            raise UsageError(
                f"Results {first[key] + 1} and {index + 1} of {len(paths)} would both be {path} by {where}.",
                "Use a template that tells them apart, such as out/{name}-{seed}-{index}.",
            )
        first[key] = index


def _refuse_inputs(paths: list[Path], inputs: list[Path]) -> None:
    taken = {os.path.normcase(os.path.realpath(source)) for source in inputs}
    for path in paths:
        if os.path.normcase(os.path.realpath(path)) in taken:
            raise UsageError(
                f"{path} is an input and would be overwritten by its own result.", "Choose another name."
            )


def _refuse_existing(paths: list[Path]) -> None:
    existing = [path for path in paths if path.exists() and not (path.is_dir() and not any(path.iterdir()))]
    if existing:
        more = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        verb = "exist" if more else "exists"
        raise UsageError(
            f"{existing[0]}{more} already {verb}.", "Pass --overwrite, or choose another --output."
        )
