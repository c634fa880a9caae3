"""Making clips from the command line: progress, several devices, ranking, and the manifest of many clips."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from svdcli.cli.console import Progress, out
from svdcli.errors import SvdError

if TYPE_CHECKING:
    import numpy as np
    import torch

    from svdcli.engine.generate import Sampling
    from svdcli.engine.memory import Mode, Residence
    from svdcli.engine.produce import Clip, Job, Writing
    from svdcli.evaluate.rank import Measures
    from svdcli.model.bundle_files import BundleFiles

DECODE_UNITS = 4
"""How many steps a decode counts as in the progress bar."""
STRIP = 5
"""Frames of a clip in a contact sheet."""
INDEX = "svd-manifest.json"
"""Beside the outputs of a run of several clips: the manifests of all of them, and of earlier runs there."""


class Watcher:
    """Shows the progress of all clips as one bar: a unit for a step, and some for a decode."""

    def __init__(self, bar: Progress, num_jobs: int) -> None:
        self.bar, self.num_jobs, self.begun, self.decoded = bar, num_jobs, 0, 0

    @classmethod
    @contextmanager
    def over(cls, num_jobs: int, num_steps: int, num_decodes: int) -> Iterator[Watcher]:
        total = num_jobs * num_steps + num_decodes * DECODE_UNITS
        with out.progress("sample" if num_steps else "decode", total) as bar:
            yield cls(bar, num_jobs)

    def begin(self, job: Job) -> None:
        self.begun, self.decoded = self.begun + 1, 0

    def step(self, job: Job, info: Any) -> None:
        self.bar.advance(1, note=f"{self._name(job)} step {info.index + 1}/{info.total}")

    def frames(self, job: Job, done: int, total: int) -> None:
        units, self.decoded = DECODE_UNITS * (done - self.decoded) / total, done
        self.bar.advance(units, note=f"{self._name(job)} decoded {done}/{total}")

    def note(self, text: str) -> None:
        out.say(f"note: {text}")

    def kept(self, latents: Path) -> None:
        from svdcli.engine.produce import decode_command

        out.warn(f"the clip is not lost: `{decode_command(latents)}` finishes it")

    def _name(self, job: Job) -> str:
        return f"{job.subject.name} ({self.begun}/{self.num_jobs})"


@dataclass(frozen=True)
class Made:
    """What is left of a clip in memory once it is on disk."""

    job: Job
    manifest: dict[str, Any]
    measures: Measures | None = None
    strip: np.ndarray | None = None
    """some frames, (5, H, W, 3) uint8"""

    @classmethod
    def of(cls, clip: Clip, measured: bool) -> Made:
        if not measured or clip.frames is None or clip.picture is None:
            return cls(clip.job, clip.manifest)
        import numpy as np

        from svdcli.evaluate.rank import Measures

        places = np.linspace(0, len(clip.frames) - 1, min(STRIP, len(clip.frames))).round().astype(int)
        measures = Measures.of(clip.frames, clip.picture, clip.manifest["fps"])
        return cls(clip.job, clip.manifest, measures, clip.frames[places])


@dataclass(frozen=True)
class Run:
    """What is to be made, how, and where."""

    jobs: list[Job]
    files: BundleFiles
    sampling: Sampling
    writing: Writing
    mode: Mode
    device: torch.device
    dtype: torch.dtype
    ranked: bool

    def here(self) -> list[Made]:
        """Make all clips in this process."""
        from svdcli.engine.memory import Residence

        return self._make(self.jobs, Residence(self.files, self.mode, self.device, self.dtype))

    def on(self, devices: int) -> list[Made]:
        """Make them on several devices, each process its share; all of them come back to the first process.

        A share that fails does not stop the others. The other processes end here.
        """
        from svdcli.engine.launch import spread
        from svdcli.engine.memory import Residence

        fabric = spread(self.device.type, devices)
        residence = Residence(self.files, self.mode, fabric.device, self.dtype)
        try:
            outcome: list[Made] | SvdError = self._make(self.jobs[fabric.global_rank :: devices], residence)
        except SvdError as error:
            outcome = error
        shares = gather(outcome, devices)
        if fabric.global_rank:
            raise typer.Exit
        for share in shares:
            if isinstance(share, SvdError):
                raise share
        return [shares[i % devices][i // devices] for i in range(len(self.jobs))]

    def _make(self, jobs: list[Job], residence: Residence) -> list[Made]:
        from svdcli.engine.produce import produce

        num_steps = (len(self.sampling.sigmas()) - 1) * len(self.sampling.starts())
        num_decodes = len(jobs) * (self.writing.kind != "latents")
        with Watcher.over(len(jobs), num_steps, num_decodes) as watcher:
            clips = produce(jobs, residence, self.sampling, self.writing, watcher)
            return [Made.of(clip, self.ranked) for clip in clips]


def gather(outcome: Any, devices: int) -> list[Any]:
    """Everyone's outcome, in every process. A share may take days longer than another."""
    from datetime import timedelta

    import torch.distributed as dist

    everyone: list[Any] = [None] * devices
    dist.all_gather_object(everyone, outcome, dist.new_group(backend="gloo", timeout=timedelta(days=30)))
    dist.destroy_process_group()
    return everyone


# ---- after the last clip


def rank_clips(made: Sequence[Made]) -> list[dict[str, Any]]:
    """Score the clips of each subject, best first, and write a contact sheet beside them."""
    from svdcli.evaluate.rank import rank
    from svdcli.io.images import write_png
    from svdcli.io.sheet import contact_sheet

    ranking = []
    for subject in dict.fromkeys(m.job.subject for m in made):
        rivals = [m for m in made if m.job.subject == subject]
        scores = rank([m.measures for m in rivals if m.measures is not None])
        ordered = [(rivals[score.index], score) for score in scores]
        sheet = sheet_path([m.job for m in rivals])
        titles = [f"{place}. seed {m.job.seed}  {s.summary}" for place, (m, s) in enumerate(ordered, 1)]
        write_png(sheet, contact_sheet([m.strip for m, _ in ordered if m.strip is not None], titles, STRIP))
        clips = [{"output": str(m.job.output), "seed": m.job.seed, **s.figures} for m, s in ordered]
        ranking.append({"source": str(subject.source), "sheet": str(sheet), "clips": clips})
    return ranking


def sheet_path(rivals: Sequence[Job]) -> Path:
    """The contact sheet of the clips of one picture, named by the first of them."""
    return rivals[0].output.with_name(f"{rivals[0].output.stem}.ranking.png")


def index_path(jobs: Sequence[Job]) -> Path | None:
    """Where the manifest of a run of several clips lies: in the folder that holds them all."""
    if len(jobs) == 1:
        return None
    folder = Path(os.path.commonpath([os.path.abspath(job.output.parent) for job in jobs]))
    return (folder if jobs[0].output.is_absolute() else Path(os.path.relpath(folder))) / INDEX


def read_index(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Clips and rankings of earlier runs in that folder. Raises InputError where the file is not ours."""
    from svdcli.errors import InputError
    from svdcli.io.manifest import read_manifest

    if not path.exists():
        return [], []
    manifest = read_manifest(path)
    clips, groups = manifest.get("clips"), manifest.get("ranking")
    for rows in (clips, groups):
        if not (isinstance(rows, list) and all(isinstance(row, dict) for row in rows)):
            raise InputError(f"{path} is not a manifest of svd", "Move it away, or write to another folder.")
    return clips or [], groups or []


def write_index(path: Path, made: Sequence[Made], ranking: Sequence[dict[str, Any]]) -> None:
    """Add the run to the manifest of its folder; a clip that was made again replaces its former self."""
    from svdcli.io.manifest import write_manifest

    clips, groups = read_index(path)
    clips_by_output = {clip.get("output"): clip for clip in [*clips, *(m.manifest for m in made)]}
    groups_by_sheet = {group.get("sheet"): group for group in [*groups, *ranking]}
    write_manifest(path, {"clips": list(clips_by_output.values()), "ranking": list(groups_by_sheet.values())})
