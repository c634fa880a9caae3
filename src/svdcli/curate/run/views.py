"""Objects and captures -> views, by the engines, the journal and the locks that videos are curated with.

What it is: which items are still to do, the stage that an engine runs on them, and `index.json` made of what the
journal then says. What it is not: how an item becomes views (`multiview.objaverse`, `multiview.mvimgnet`).

The same item under the same settings is not done twice, whichever engine did it and however that ended; a failed one
is tried again with other settings, or if the executor says so. Of items with the same content the first is made.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from svdcli.curate import tables
from svdcli.curate.journal import VIEWS, Entry, Journal, Ledger, Status
from svdcli.curate.run.engines import engine
from svdcli.curate.run.fetch import clear_scratch
from svdcli.curate.run.pipeline import Watch, run_items
from svdcli.curate.run.workers import Handle, Outcome, Tell
from svdcli.io.files import atomic_path, check_writable
from svdcli.io.lock import lock_run
from svdcli.multiview.items import INDEX, Item, content_key
from svdcli.multiview.mvimgnet import Sequences, find_instances, instance_key, read_instance
from svdcli.multiview.objaverse import Orbits, find_objects, render_object
from svdcli.multiview.objaverse_hub import is_id
from svdcli.multiview.transforms import NAME
from svdcli.recipe.executor import Executor

FOLDER = "views"
EXECUTOR = Executor(deadline=3600.0, memory_gib=8.0)
"""an object has no length by which its deadline could be set"""

Make = Callable[[Item, str, Path, Any], dict[str, Any]]
"""(item, its key, the folder to write, settings) -> facts. A function of a module, as it is pickled."""


@dataclass(frozen=True)
class Row:
    """What became of an item. key: the hash of its content. folder: where its views lie, from the output folder.

    kind: the reason without the item's name, so that equal reasons add up.
    """

    key: str
    path: str
    status: Status
    reason: str = ""
    kind: str = ""
    licence: str = ""
    source: str = ""
    folder: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


def curate_objaverse(
    source: Path, out: Path, settings: Orbits | None = None, executor: Executor = EXECUTOR, watch: Watch | None = None
) -> list[Row]:  # fmt: skip
    """Render all objects of a folder, a list or Objaverse ids; the rows of all, in their order.

    Raises InputError where there is none, MachineError where none can be worked on.
    """
    work = ViewsWork(
        out.absolute(), settings or Orbits(), render_object
    )  # a worker of Ray may stand elsewhere
    return _run(
        find_objects(source if is_id(source.name) else source.absolute()),
        content_key,
        work,
        executor,
        watch or Watch(),
        "objects",
    )


def curate_mvimgnet(
    source: Path, out: Path, settings: Sequences | None = None, executor: Executor = EXECUTOR, watch: Watch | None = None
) -> list[Row]:  # fmt: skip
    """All captures of MVImgNet below `source`, as `curate_objaverse`."""
    work = ViewsWork(out.absolute(), settings or Sequences(), read_instance)
    return _run(find_instances(source.absolute()), instance_key, work, executor, watch or Watch(), "captures")


class Task(NamedTuple):
    """An item on its way to a worker."""

    item: Item
    key: str
    stamp: str


@dataclass(frozen=True)
class ViewsWork:
    """The stage, as engines know it (`stages.Stage`)."""

    folder: Path
    settings: Any
    make: Make

    def stage(self, item: Task) -> str:
        return VIEWS

    def open(self) -> Handle:
        return self._make

    def entries(self, outcome: Outcome) -> list[Entry]:
        task: Task = outcome.item
        if outcome.fault:
            return [entry_of(task, "failed", outcome.reason)]
        return [entry_of(task, "done", facts=outcome.value)]

    def parts(self, item: Any) -> Sequence[Any]:
        return ()

    def keys(self, item: Task) -> Sequence[str]:
        return (str(item.item.path),)

    def _make(self, task: Task, tell: Tell) -> dict[str, Any]:
        folder = self.folder / place_of(task.key)
        folder.parent.mkdir(parents=True, exist_ok=True)
        return self.make(task.item, task.key, folder, self.settings)


def entry_of(task: Task, status: Status, reason: str = "", facts: Mapping[str, Any] | None = None) -> Entry:
    """The line on an item."""
    row = {"licence": task.item.licence, "source": task.item.source, "facts": facts or {}}
    return Entry(VIEWS, task.key, str(task.item.path), status, reason, rows=[row], stamp=task.stamp)


def place_of(key: str) -> Path:
    """Where the views of an item lie, from the output folder."""
    return Path(FOLDER) / key[:2] / key


# ---- what is to do


def _run(
    items: Sequence[Item], key: Callable[[Item], str], work: ViewsWork, executor: Executor, watch: Watch, label: str
) -> list[Row]:  # fmt: skip
    with _held(work.folder):
        ledger = Ledger(work.folder)
        if ledger.damaged:
            watch.warn(f"{ledger.damaged} lines of the journal are damaged; what they told of is done again.")
        with Journal(work.folder) as journal:
            todo = list(_to_do(items, key, work, ledger, journal, executor.retry_failed))
        if todo:
            with engine(work, work.folder, executor) as run:
                run_items(run, todo, len(todo), watch, label)
        return _write_index(items, work.folder)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """The output folder, locked, without what a kill left half-written in it."""
    check_writable(folder / INDEX, parents=True)
    with lock_run(folder):
        clear_scratch(folder)
        for half in (folder / FOLDER).glob("*/.*"):
            shutil.rmtree(half, ignore_errors=True)
        yield


def _to_do(
    items: Sequence[Item], key: Callable[[Item], str], work: ViewsWork, ledger: Ledger, journal: Journal, again: bool
) -> Iterator[Task]:  # fmt: skip
    """Items that are to be worked on; those that are others' copies, or cannot be read, are journalled."""
    known = ledger.of(VIEWS)
    mark = hashlib.sha256(repr(work.settings).encode()).hexdigest()[:12]
    first = {m.item: path for path, m in known.items() if m.status == "done" and m.stamp.startswith(mark)}
    for item in dict.fromkeys(items):
        task = Task(item, "", _stamp(item, mark))
        before = known.get(str(item.path))
        if before and before.stamp == task.stamp and not (again and before.status == "failed"):
            if before.status != "done" or (work.folder / place_of(before.item) / NAME).exists():
                continue
        try:
            task = task._replace(key=key(item))
        except OSError as error:
            journal.append(entry_of(task, "failed", f"{item.path} cannot be read: {error.strerror}."))
            continue
        if first.setdefault(task.key, str(item.path)) != str(item.path):
            journal.append(entry_of(task, "duplicate", f"It has the same bytes as {first[task.key]}."))
            continue
        yield task


def _stamp(item: Item, mark: str) -> str:
    """What settings and file an entry is of."""
    try:
        found = item.path.stat()
    except OSError:
        return mark
    return f"{mark}-{found.st_size}-{found.st_mtime_ns}"


# ---- the account


def _write_index(items: Sequence[Item], folder: Path) -> list[Row]:
    """`index.json`: every item with its licence, and the sums by status and by reason."""
    ledger = Ledger(folder)
    rows = [_row(ledger.entry(ledger.of(VIEWS)[str(item.path)])) for item in dict.fromkeys(items)]
    counts = {status: sum(row.status == status for row in rows) for status in ("done", "failed", "duplicate")}
    reasons = Counter(row.kind or row.status for row in rows if row.status != "done")
    tree = {"counts": counts, "reasons": reasons, "items": [asdict(row) for row in rows]}
    with atomic_path(folder / INDEX) as temporary:
        temporary.write_text(json.dumps(tree, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return rows


def _row(entry: Entry) -> Row:
    facts = entry.rows[0]
    kind = tables.readable(entry.reason.replace(entry.path, "It")) if entry.status == "failed" else ""
    place = str(place_of(entry.item)) if entry.status == "done" else ""
    return Row(
        entry.item, entry.path, entry.status, entry.reason, kind, facts["licence"], facts["source"], place, facts["facts"]
    )  # fmt: skip
