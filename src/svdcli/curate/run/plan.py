"""The plan: a sample is worked on and timed, and the hours, the disk and the bottleneck of the whole corpus follow.

What it is: arithmetic on what this machine did with a few sources of the corpus itself. What it is not: a bound; a
corpus is not its sample, and a machine that does other things besides is slower by the clock, though not in CPU
seconds, which is why those are what is counted.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svdcli.curate import tables
from svdcli.curate.annotate.registry import annotators
from svdcli.curate.journal import Journal, Ledger
from svdcli.curate.run.engines import limits, workers
from svdcli.curate.run.inputs import Input, list_inputs
from svdcli.curate.run.pipeline import batches_to_measure
from svdcli.curate.run.rebuild import make_scores_table, make_split_tables
from svdcli.curate.run.stages import AnnotateWork, SplitWork, Stage, drain
from svdcli.curate.run.workers import Pool
from svdcli.errors import InputError, MachineError

if TYPE_CHECKING:
    from svdcli.recipe.curation import Curation

LVD_CLIPS, LVD_CLIP_SECONDS = 577e6, 11.58
"""the paper's dataset before filtering: 577 M clips of 11.58 s, 212 years (table 1)"""
SAMPLE = 8


@dataclass(frozen=True)
class StageCost:
    """What a stage took for the sample."""

    name: str
    cpu_seconds: float
    per_second: float
    """CPU seconds for a second of footage"""
    absent: str = ""
    """why it could not be timed: its model is not here"""


@dataclass(frozen=True)
class Plan:
    """What a corpus would take."""

    sampled: int
    """sources that were worked on"""
    failed: int
    """of them, those that could not be used"""
    sample_seconds: float
    """their footage"""
    inputs: int
    """of the whole corpus"""
    bytes: int
    """of the whole corpus, as far as it says"""
    seconds: float
    """footage of the whole corpus"""
    clips: float
    """that it would give"""
    clip_seconds: float
    """their mean length"""
    stages: tuple[StageCost, ...]
    workers: int
    disk: dict[str, float]
    """bytes: clips, proxies, tables and journal, dataset (at most: were every clip kept)"""

    @property
    def cpu_hours(self) -> float:
        return sum(stage.per_second for stage in self.stages) * self.seconds / 3600

    @property
    def hours(self) -> float:
        """With all workers busy to the end."""
        return self.cpu_hours / self.workers

    @property
    def bottleneck(self) -> str:
        return max(self.stages, key=lambda stage: stage.per_second).name

    def workers_for(self, hours: float) -> int:
        """How many workers end within so many hours."""
        return max(1, math.ceil(self.cpu_hours / hours))

    def to_dict(self) -> dict[str, Any]:
        derived = {"cpu_hours": self.cpu_hours, "hours": self.hours, "bottleneck": self.bottleneck}
        return asdict(self) | derived | {"workers_for_30_days": self.workers_for(720)}


def plan(source: str, recipe: Curation, *, clips: float | None = None, sample: int = SAMPLE) -> Plan:
    """Work on `sample` sources of the corpus in a folder that is removed again, and scale up.

    `clips`: plan for a corpus of such sources that gives so many clips, instead of this one. Raises UsageError where
    there is nothing, InputError where no source of the sample could be used.
    """
    listed = [item for item in list_inputs(source) if item.kind not in ("other", "unusable")]
    chosen = [listed[i * len(listed) // min(sample, len(listed))] for i in range(min(sample, len(listed)))]
    with tempfile.TemporaryDirectory(prefix="svd-plan-") as name:
        folder = Path(name)
        costs, failed = _measure(chosen, folder, recipe)
        sources = list(tables.read(tables.table_folder(folder, "sources")))
        made = list(tables.read(tables.table_folder(folder, "clips")))
        sizes = {part: _bytes(folder / part) for part in ("clips", "proxies", "tables", "journal")}
    seconds = sum(
        (row["end_pts"] - row["start_pts"]) * row["time_base_num"] / row["time_base_den"] for row in sources
    )
    if not made:
        raise InputError(
            f"None of {len(chosen)} sampled sources gives a clip.", "Run svd curate split on one of them."
        )
    total = _corpus_seconds(listed, chosen, seconds)
    if clips is not None:
        total = clips * seconds / len(made)
    scale = total / seconds
    disk = {
        "clips": sizes["clips"] * scale,
        "proxies": sizes["proxies"] * scale,
        "tables and journal": (sizes["tables"] + sizes["journal"]) * scale,
        "dataset": sum(row["size"] for row in made) * scale,
    }
    return Plan(
        len(chosen),
        failed,
        seconds,
        len(listed),
        sum(item.size for item in listed),
        total,
        len(made) * scale,
        sum(row["end"] - row["start"] for row in made) / len(made),
        tuple(StageCost(stage, cpu, cpu / seconds, absent) for stage, cpu, absent in costs),
        workers(recipe.executor, models=False),
        disk,
    )


def _corpus_seconds(listed: Sequence[Input], chosen: Sequence[Input], seconds: float) -> float:
    """Footage of the corpus: by bytes where sizes are known, else by count; what fails in the sample fails in it."""
    known = sum(item.size for item in chosen)
    if known and all(item.size for item in listed):
        return seconds * sum(item.size for item in listed) / known
    return seconds * len(listed) / len(chosen)


def _measure(
    chosen: Sequence[Input], folder: Path, recipe: Curation
) -> tuple[list[tuple[str, float, str]], int]:
    """(stage, CPU seconds, why not) of each stage, and how many sources failed."""
    split = SplitWork(folder, recipe.split, int(recipe.executor.source_gib * 2**30))
    with _pool(split, recipe, len(chosen)) as pool:
        cpu, failed = _time(pool, split, chosen, folder)
    make_split_tables(folder)
    costs, work = [("split", cpu, "")], AnnotateWork(folder, recipe.annotate, recipe.executor.device)
    with _pool(work, recipe, 1, models=True) as pool:
        for annotator in annotators(recipe.annotate, recipe.executor.device):
            batches = list(batches_to_measure(annotator, folder, Ledger(folder), recipe))
            try:
                costs.append((annotator.name, _time(pool, work, batches, folder)[0], ""))
            except MachineError as error:
                costs.append((annotator.name, 0.0, error.message))
            make_scores_table(folder, annotator)
    return costs, failed


def _pool(work: Stage, recipe: Curation, items: int, models: bool = False) -> Pool:
    size = min(items, workers(recipe.executor, models))
    return Pool(work, size, limits(recipe.executor, models))


def _time(pool: Pool, work: Stage, items: Sequence[Any], folder: Path) -> tuple[float, int]:
    """-> CPU seconds, items that failed."""
    cpu, failed = 0.0, 0
    with Journal(folder) as journal:
        for outcome in drain(pool, work, items):
            cpu += outcome.cpu_seconds
            failed += bool(outcome.fault)
            for entry in work.entries(outcome):
                journal.append(entry)
    return cpu, failed


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
