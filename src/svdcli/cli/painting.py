"""`svd sample --prompt ... --image-model REF`: words become pictures, which then become videos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from svdcli.cli.choices import Fit
from svdcli.cli.console import out
from svdcli.errors import UsageError

if TYPE_CHECKING:
    import torch

    from svdcli.engine.paint import Painter
    from svdcli.engine.produce import Job


def choose_painter(
    ref: str | None, prompts: Sequence[str], steps: int | None, guidance: float | None, negative: str, devices: int
) -> Painter | None:  # fmt: skip
    """The image model that was asked for. Raises UsageError for options that mean nothing without one."""
    from svdcli.engine.paint import find_painter

    if ref is None:
        for name, given in (("--image-steps", steps), ("--image-guidance", guidance)):
            if given is not None:
                raise UsageError(f"{name} is of an image model", "Name one with --image-model.")
        return None
    if not prompts:
        raise UsageError("--image-model paints words", 'Add --prompt "a boat at sea".')
    if devices > 1:
        raise UsageError("--image-model and --devices do not go together", "Leave --devices out.")
    return find_painter(ref, steps, guidance, negative)


def picture_paths(jobs: Sequence[Job]) -> dict[str, Path]:
    """Where the picture of each text is kept: beside the first clip made of it."""
    first = {str(job.subject.source): job.output for job in reversed(jobs)}
    return {text: path.with_name(f"{path.stem}.picture.png") for text, path in first.items()}


def painted(
    jobs: Sequence[Job], painter: Painter, fit: Fit, size: tuple[int, int], device: torch.device, dtype: Any
) -> list[Job]:
    """The jobs with a picture, made now and kept, in the place of each text; all clips of a text move one picture."""
    from svdcli.engine.paint import Painted, paint
    from svdcli.io.images import write_png

    paths, seed = picture_paths(jobs), jobs[0].seed
    how = cast("Literal['crop', 'pad', 'stretch']", fit.value)
    with out.progress("paint", len(paths)) as bar:
        pictures = paint(painter, list(paths), seed, size, device, dtype, lambda: bar.advance(1))
    for (text, path), picture in zip(paths.items(), pictures, strict=True):
        write_png(path, picture, {"prompt": text, "image_model": painter.name, "seed": str(seed)})
        out.say(f"picture: {path}")
    return [
        replace(
            job, subject=Painted(str(job.subject.source), paths[str(job.subject.source)], painter, seed, how)
        )
        for job in jobs
    ]
