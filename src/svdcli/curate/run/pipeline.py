"""The pipeline: split, then each annotator, each stage journalled and then made into tables.

What it is: what is still to do of a stage, handed to an engine, and the tables made of what the journal then says
(`rebuild`). What it is not: the engines (`engines`), or what happens to an item (`stages`).

Killed at any instant and begun again, nothing that is done is done again, and the tables are the same to the byte:
clips depend on their source and the recipe alone, batches on the order of the clips' ids alone, tables on the journal.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from svdcli.curate import tables
from svdcli.curate.journal import ANNOTATE, SPLIT, Journal, Ledger, Mark
from svdcli.curate.rows import CutClip
from svdcli.curate.run.engines import Engine, engine
from svdcli.curate.run.fetch import clear_scratch
from svdcli.curate.run.inputs import Input, list_inputs
from svdcli.curate.run.rebuild import make_scores_table, make_split_tables
from svdcli.curate.run.stages import MODELS, AnnotateWork, Batch, SplitWork, refused
from svdcli.errors import MachineError, RecipeError
from svdcli.io.files import atomic_path, check_writable, remove_unfinished
from svdcli.io.lock import lock_run

if TYPE_CHECKING:
    from svdcli.recipe.curation import Curation

RECIPE = "curation.json"
RUNNING = ".running"
"""a file that is there while a run works in the folder, and after one that was killed"""


class Progress(Protocol):
    def advance(self, steps: float = 1, note: str | None = None) -> None: ...


class Watch:
    """Who is told how a run goes; this one listens to nothing."""

    def stage(self, label: str, total: int) -> AbstractContextManager[Progress]:
        """A stage of so many items begins."""
        return nullcontext(_Nobody())

    def warn(self, sentence: str) -> None:
        """Something is otherwise than asked."""


class _Nobody:
    def advance(self, steps: float = 1, note: str | None = None) -> None:
        pass


@dataclass
class Listed:
    """What the source of a run came to."""

    inputs: int = 0
    left_aside: int = 0
    """files that are no videos by name and first bytes"""
    new: int = 0
    """inputs that were worked on in this run"""


@contextmanager
def opened_folder(folder: Path, recipe: Curation) -> Iterator[None]:
    """Hold a curation folder for this run: made if need be, locked, its recipe checked and kept.

    Raises UsageError where it cannot be written, MachineError where another run holds it, RecipeError where its clips
    were cut by other settings.
    """
    check_writable(folder / RECIPE, parents=True)
    with ExitStack() as stack:
        stack.enter_context(lock_run(folder))
        _keep_recipe(folder, recipe)
        clear_scratch(folder)
        if (folder / RUNNING).exists():  # the run before was killed
            remove_unfinished(folder)
        (folder / RUNNING).touch()
        try:
            yield
        finally:
            clear_scratch(folder)
            (folder / RUNNING).unlink(missing_ok=True)


def run_split(source: str, folder: Path, recipe: Curation, watch: Watch, limit: int | None = None) -> Listed:
    """Split every input that is new, changed, or to be tried again; then make the tables.

    Raises UsageError and InputError where there are no inputs to list, MachineError where nothing can be worked on.
    """
    folder = folder.absolute()  # workers on other machines stand elsewhere
    ledger, listed = Ledger(folder), Listed()
    if ledger.damaged:
        watch.warn(f"{ledger.damaged} lines of the journal are damaged; what they told of is done again.")
    with Journal(folder) as journal:
        todo = list(_to_split(source, ledger, journal, recipe, folder, listed, limit))
    listed.new = len(todo)
    if todo:
        work = SplitWork(folder, recipe.split, int(recipe.executor.source_gib * 2**30))
        with engine(work, folder, recipe.executor) as run:
            run_items(run, todo, len(todo), watch, SPLIT)
    make_split_tables(folder)
    return listed


def run_annotate(
    folder: Path, recipe: Curation, watch: Watch, only: Sequence[str] = (), clip: str = ""
) -> dict[str, str]:
    """Measure every clip that has no row of the annotators' present version; -> why others were not computed, by name.

    `only` leaves out other annotators, `clip` other clips, and measures that one whatever was known of it.
    """
    from svdcli.curate.annotate.registry import annotators

    folder = folder.absolute()  # workers on other machines stand elsewhere
    absent: dict[str, str] = {}
    work = AnnotateWork(folder, recipe.annotate, recipe.executor.device)
    with ExitStack() as stack:
        engines: dict[bool, Engine] = {}  # one for annotators that load large models, one for all others
        for annotator in annotators(recipe.annotate, recipe.executor.device):
            if only and annotator.name not in only:
                continue
            models = annotator.name in MODELS
            if models not in engines:
                engines[models] = stack.enter_context(engine(work, folder, recipe.executor, models))
            reason = _measure(annotator, folder, engines[models], recipe, watch, clip)
            make_scores_table(folder, annotator, reason)
            if reason:
                absent[annotator.name] = reason
                watch.warn(f"{annotator.name} was not computed: {reason}")
    return absent


# ---- split


def _to_split(
    source: str,
    ledger: Ledger,
    journal: Journal,
    recipe: Curation,
    folder: Path,
    listed: Listed,
    limit: int | None,
) -> Iterator[Input]:
    """Inputs that are to be worked on; those that cannot be are journalled."""
    known, seen = ledger.of(SPLIT), set()
    for item in list_inputs(source):
        if item.kind == "other":
            listed.left_aside += 1
            continue
        if item.path in seen:
            continue  # listed twice
        if limit is not None and listed.inputs >= limit:
            break
        seen.add(item.path)
        listed.inputs += 1
        mark = known.get(item.path)
        again = mark is not None and mark.status == "failed" and recipe.executor.retry_failed
        if mark and mark.stamp == item.stamp and not again:
            continue
        if item.kind == "unusable":
            journal.append(refused(item, item.reason, folder))
        else:
            yield item


# ---- annotate


def _measure(annotator: Any, folder: Path, run: Engine, recipe: Curation, watch: Watch, clip: str) -> str:
    """Run one annotator over what it has not measured; -> why it could not, if so."""
    ledger = Ledger(folder)
    batches = list(batches_to_measure(annotator, folder, ledger, recipe, clip))
    if not batches:
        return ""
    if annotator.needs and not any(_any_done(ledger, name) for name in annotator.needs):
        return f"It reads {', '.join(annotator.needs)}, of which none was computed."
    try:
        run_items(run, batches, sum(len(batch.clips) for batch in batches), watch, annotator.name)
    except MachineError as error:  # its model is absent: said in its table, and by the filter that wants it
        return f"{error.message} {error.hint}".strip()
    return ""


def _any_done(ledger: Ledger, annotator: str) -> bool:
    return any(mark.status == "done" for mark in ledger.of(ANNOTATE + annotator).values())


def batches_to_measure(
    annotator: Any, folder: Path, ledger: Ledger, recipe: Curation, clip: str = ""
) -> Iterator[Batch]:
    """What is to be measured. Batches hold the clips that the table lacks, in the order of their ids, whatever the
    journal has of them, so that a run that was killed forms the same ones again."""
    known = ledger.of(ANNOTATE + annotator.name)
    version = str(annotator.version)

    def settled(name: str) -> bool:
        mark = known.get(name)
        if mark is None or mark.stamp != version or clip:
            return False
        return mark.status == "done" or not recipe.executor.retry_failed

    computed = {row["clip"] for row in _computed(folder, annotator)} if not clip else set()
    rows = (
        tables.from_row(CutClip, row)
        for row in _clips(folder)
        if row["id"] not in computed and (not clip or row["id"] == clip)
    )
    needs = {name: ledger.of(ANNOTATE + name) for name in annotator.needs}
    while clips := tuple(islice(rows, max(1, annotator.batch))):
        if all(settled(one.id) for one in clips):
            continue
        places = {
            name: tuple(_place(ledger, marks.get(one.id)) for one in clips) for name, marks in needs.items()
        }
        yield Batch(annotator.name, annotator.version, clips, places)


def _place(ledger: Ledger, mark: Mark | None) -> tuple[str, int] | None:
    return ledger.place(mark) if mark and mark.status == "done" else None


def _clips(folder: Path) -> Iterator[dict[str, Any]]:
    """Rows of the clips' table in the order of their ids, whatever part they came in."""
    table = tables.table_folder(folder, "clips")
    if len(tables.parts(table)) < 2:
        return tables.read(table)
    return iter(sorted(tables.read(table), key=lambda row: row["id"]))


def _computed(folder: Path, annotator: Any) -> Iterator[dict[str, Any]]:
    """Rows of an annotator's table that hold scores of its present version."""
    table = tables.table_folder(folder, f"{tables.SCORES}/{annotator.name}")
    for row in tables.read(table, ["clip", "version", "not_computed"]):
        if row["version"] == annotator.version and not row["not_computed"]:
            yield row


# ---- both


def run_items(run: Engine, items: Sequence[Any], total: int, watch: Watch, label: str) -> None:
    """Hand the items to the engine, and tell how it goes."""
    failed, seconds, begun = 0, 0.0, time.monotonic()
    with watch.stage(label, total) as progress:
        for entry in run(items):
            failed += entry.status == "failed"
            seconds += entry.seconds
            rate = seconds / max(time.monotonic() - begun, 1e-3)
            said = [f"{rate:.3g} s of video a second"] if seconds else []
            said += [f"{failed} failed"] if failed else []
            progress.advance(1, f"({', '.join(said)})" if said else "")


def _keep_recipe(folder: Path, recipe: Curation) -> None:
    """The recipe beside what it made, less what does not change that. Raises RecipeError where it cut other clips."""
    path = folder / RECIPE
    now = recipe.model_dump(mode="json", exclude={"executor"})
    text = json.dumps(now, indent=1) + "\n"
    if path.is_file():
        before = path.read_text(encoding="utf-8")
        if before == text:
            return
        changed = _changed(json.loads(before).get("split", {}), now["split"])
        if changed and any(Ledger(folder).of(SPLIT)):
            raise RecipeError(
                f"{folder} holds clips that were cut with another split.{changed}.",
                "Give another folder, or the recipe that it was begun with.",
            )
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first key that differs."""
    return next((key for key in now if before.get(key, now[key]) != now[key]), "")
