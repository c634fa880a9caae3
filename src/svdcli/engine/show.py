"""`svd train --show-batch`: what a step of a run feeds the network, as a picture, without training anything."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from svdcli.engine.tasks import Preview, make_task
from svdcli.engine.train import step_seed
from svdcli.io.files import check_writable
from svdcli.io.images import write_png
from svdcli.io.sheet import contact_sheet
from svdcli.recipe.recipe import Recipe

SHEET_WIDTH = 2400
"""Pixels that a row of frames takes at the most, where that leaves a frame 48 of them."""


def show_batch(recipe: Recipe, step: int, file: Path) -> list[Preview]:
    """Draw the first batch of a step as a PNG: a row a clip, under its name and ids; -> the rows.

    Made by the batch function and the generator of that very step. Raises SvdError as training does.
    """
    check_writable(file)
    torch.manual_seed(recipe.run.seed)
    task = make_task(recipe, torch.device("cpu"), recipe.run.folder.parent / "cache")
    seed, generator = step_seed(recipe.run.seed, step, 0)
    rows = task.preview(task.batch(seed), generator)
    columns = max(len(row.frames) for row in rows)
    cell = max(48, min(256, SHEET_WIDTH // columns))
    sheet = contact_sheet([row.frames for row in rows], [row.title for row in rows], columns, cell)
    write_png(file, np.ascontiguousarray(sheet))
    return rows
