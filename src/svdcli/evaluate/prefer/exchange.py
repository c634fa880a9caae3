"""Crowd platforms: a folder that needs no server out, CSV in."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from svdcli.errors import InputError
from svdcli.evaluate.prefer.server import describe, page
from svdcli.evaluate.prefer.study import MEDIA, Study
from svdcli.evaluate.prefer.votes import CHOICES, Choice, Task, Vote, VoteStore
from svdcli.io.files import atomic_folder, require_file

TASKS, PAGE, FORM = "tasks.csv", "index.html", "form.html"
_COLUMNS = ("task", "question", "prompt", "left_url", "right_url", "picture_url")
_RATER = ("rater", "WorkerId", "Participant id", "participant_id", "PROLIFIC_PID")
_CHOICE = ("choice", "Answer.choice")
_TASK = ("task", "Input.task")
_SAME: Mapping[str, Choice] = {"1": "left", "2": "right", "0": "tie", "none": "tie", "both bad": "bad"}


def tasks(study: Study) -> list[dict[str, Any]]:
    """Every comparison on every axis as often as it wants votes, its sides turned from one to the next; checks once."""
    found = []
    for slot in range(study.votes):
        for axis in study.axes:
            asked = study.pairs + (study.checks(axis) if slot == 0 else [])
            for comparison in sorted(asked, key=lambda c: c.id):
                side = comparison.left(slot)
                task = f"{comparison.id}:{axis}:{side}:{slot}"
                found.append({"task": task, **describe(study, Task(comparison, axis, side))})
    return found


def export_study(study: Study, folder: Path, out: Path, base_url: str = "") -> int:
    """Write a folder to upload: media, a page that works by itself, and tasks.csv with a form for task platforms.

    -> how many tasks. `base_url` is where the folder will lie; without it addresses are relative. The page asks all tasks of one
    rater after the other and saves a CSV; tasks.csv has one task a row (MTurk, SageMaker, Prolific's task lists).
    """
    rows = tasks(study)
    base = base_url.rstrip("/") + "/" if base_url else ""
    with atomic_folder(out) as temporary:
        shutil.copytree(folder / MEDIA, temporary / MEDIA)
        first = [row for row in rows if row["task"].endswith(":0")]
        for row in rows:
            for key in ("left", "right", "picture"):
                row[key + "_url"] = f"{base}{MEDIA}/{study.media[row[key]]}" if row[key] else ""
        with (temporary / TASKS).open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, _COLUMNS, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
        local = [
            {k: v for k, v in row.items() if not k.endswith("_url")}
            | {k: f"{MEDIA}/{study.media[row[k]]}" if row[k] else "" for k in ("left", "right", "picture")}
            for row in first
        ]
        (temporary / PAGE).write_text(page(local), encoding="utf-8")
        (temporary / FORM).write_text(_FORM, encoding="utf-8")
    return len(rows)


def import_votes(store: VoteStore, file: Path) -> int:
    """Add the votes of a platform's CSV (or of the exported page) -> how many. All or none: raises InputError with the row.

    Columns: task (or Input.task), rater (or WorkerId, participant_id, ...), choice (or Answer.choice): left, right, tie, bad; 1,
    2, 0 are understood.
    """
    with require_file(file, "table of votes").open(
        newline="", encoding="utf-8-sig", errors="replace"
    ) as stream:
        try:
            votes = [_vote(store.study, row, number) for number, row in enumerate(csv.DictReader(stream), 2)]
        except csv.Error as error:
            raise InputError(
                f"{file} is not CSV: {error}.", "Export it again as comma-separated values."
            ) from error
    if not votes:
        raise InputError(f"{file} has no votes.", "It needs a header and a row for each vote.")
    for vote in votes:
        store.add(vote, f"import {file.name}")
    return len(votes)


def _vote(study: Study, row: Mapping[str, str | None], number: int) -> Vote:
    task, rater = _column(row, _TASK, number), _column(row, _RATER, number).strip()
    said = _column(row, _CHOICE, number).strip().lower()
    choice = _SAME.get(said, said)
    parts = task.split(":")
    known = study.by_id().get(parts[0])
    if len(parts) != 4 or known is None or parts[1] not in study.axes or parts[2] not in ("a", "b"):
        raise InputError(
            f"Row {number}: {task!r} is no task of this study.", f"Tasks are those of its {TASKS}."
        )
    if known.check not in ("", parts[1]):
        raise InputError(
            f"Row {number}: {task!r} is not asked on this axis.", f"Tasks are those of its {TASKS}."
        )
    if choice not in CHOICES:
        raise InputError(
            f"Row {number}: the choice {said!r} is none of {', '.join(CHOICES)}.", "Mend the table."
        )
    if not 0 < len(rater) <= 80 or not rater.isprintable():
        raise InputError(f"Row {number} names no rater.", "Each row needs one.")
    return Vote(rater, known.id, parts[1], choice, "a" if parts[2] == "a" else "b")


def _column(row: Mapping[str, str | None], names: Iterable[str], number: int) -> str:
    for name in names:
        if (value := row.get(name)) is not None:
            return value
    raise InputError(f"Row {number} has no column {' or '.join(names)}.", "Name the columns so.")


_FORM = """<!-- For MTurk and SageMaker: a row of tasks.csv fills ${...}; upload tasks.csv as the batch. -->
<script src="https://assets.crowd.aws/crowd-html-elements.js"></script>
<crowd-form>
  <h2>${question}</h2>
  <p>${prompt}</p>
  <p><img src="${picture_url}" alt="" style="max-height: 160px"></p>
  <div style="display: flex; gap: 1em">
    <video src="${left_url}" style="width: 50%" autoplay muted loop playsinline></video>
    <video src="${right_url}" style="width: 50%" autoplay muted loop playsinline></video>
  </div>
  <p>
    <label><input type="radio" name="choice" value="left" required> left</label>
    <label><input type="radio" name="choice" value="tie"> no difference</label>
    <label><input type="radio" name="choice" value="bad"> both bad</label>
    <label><input type="radio" name="choice" value="right"> right</label>
  </p>
</crowd-form>
"""
