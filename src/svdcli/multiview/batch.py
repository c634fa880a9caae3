"""Many objects, one after another or in parallel, every one accounted for, resumable after any stop.

Each item becomes one line of `journal.jsonl`: done, failed with its reason, or a duplicate of another. Workers are
processes of their own, so a mesh that kills its worker is one failed item.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

from svdcli.errors import SvdError
from svdcli.io.files import atomic_path

JOURNAL, INDEX = "journal.jsonl", "index.json"


@dataclass(frozen=True)
class Item:
    """Something to turn into views. `licence` is what its source states, "" where it states none."""

    path: Path
    licence: str = ""
    source: str = ""


@dataclass(frozen=True)
class Row:
    """What became of an item. key: the hash of its content. folder: where its views lie, relative to the output."""

    key: str
    path: str
    status: Literal["done", "failed", "duplicate"]
    reason: str = ""
    licence: str = ""
    source: str = ""
    folder: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


Work = Callable[[Item, str, Path, Any], dict[str, Any]]
"""(item, its key, the folder to write, settings) -> facts. Raises SvdError for a bad item. Must be picklable."""


def run_batch(
    items: Sequence[Item],
    keys: Callable[[Item], str],
    work: Work,
    out: Path,
    settings: Any,
    jobs: int = 1,
    done: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """Work through all items that the journal does not hold yet; the rows of all, in the order of `items`.

    The same item under the same settings is not done twice; a failed one is tried again only with other settings.
    """
    out.mkdir(parents=True, exist_ok=True)
    mark = hashlib.sha256(repr(settings).encode()).hexdigest()[:12]
    rows = read_journal(out, mark)
    waiting = [item for item in items if str(item.path) not in rows]
    for item in items:
        if str(item.path) in rows:
            done(rows[str(item.path)])
    first = {row.key: row.path for row in rows.values() if row.status == "done"}
    with (out / JOURNAL).open("a", encoding="utf-8") as journal:
        for row in _results(waiting, keys, work, out, settings, jobs, first):
            journal.write(
                json.dumps(asdict(row) | {"settings": mark}, ensure_ascii=False, default=str) + "\n"
            )
            journal.flush()
            rows[row.path] = row
            done(row)
    ordered = [rows[str(item.path)] for item in items]
    write_index(out, ordered)
    return ordered


def read_journal(out: Path, mark: str) -> dict[str, Row]:
    """Rows by path, of these settings. A last line that a kill cut off is passed over."""
    rows: dict[str, Row] = {}
    if not (out / JOURNAL).exists():
        return rows
    for line in (out / JOURNAL).read_text(encoding="utf-8").splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if values.pop("settings") != mark:
            continue
        row = Row(**values)
        if row.status != "done" or (out / row.folder / "transforms.json").exists():
            rows[row.path] = row
    return rows


def write_index(out: Path, rows: Sequence[Row]) -> None:
    """`index.json`: every item with its licence, and the sums by status and reason."""
    reasons: dict[str, int] = {}
    for row in rows:
        if row.status != "done":
            label = row.status if row.status == "duplicate" else row.facts.get("kind", row.reason)
            reasons[label] = reasons.get(label, 0) + 1
    counts = {status: sum(row.status == status for row in rows) for status in ("done", "failed", "duplicate")}
    with atomic_path(out / INDEX) as temporary:
        tree = {"counts": counts, "reasons": reasons, "items": [asdict(row) for row in rows]}
        temporary.write_text(
            json.dumps(tree, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8"
        )


def content_key(item: Item) -> str:
    """The hash of a file's bytes, 16 hexadecimal digits."""
    with item.path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def _results(
    items: Sequence[Item], keys: Callable[[Item], str], work: Work, out: Path, settings: Any, jobs: int,
    first: dict[str, str],
) -> Iterator[Row]:  # fmt: skip
    tasks: list[tuple[Item, str]] = []
    for item in items:
        try:
            key = keys(item)
        except OSError as error:
            yield _failed(item, "", f"{item.path} cannot be read: {error.strerror}.")
            continue
        if key in first:
            yield Row(
                key, str(item.path), "duplicate", f"the same as {first[key]}", item.licence, item.source
            )
            continue
        first[key] = str(item.path)
        tasks.append((item, key))
    size = max(1, jobs) * 4
    for start in range(0, len(tasks), size):
        yield from _together(tasks[start : start + size], work, out, settings, jobs)


def _together(
    tasks: list[tuple[Item, str]], work: Work, out: Path, settings: Any, jobs: int
) -> Iterator[Row]:
    """A batch in parallel; where a worker dies, its items again one by one, to know whose fault it was."""
    rows: dict[str, Row] = {}
    try:
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            futures = [(key, pool.submit(_do, item, key, work, out, settings)) for item, key in tasks]
            for key, future in futures:
                rows[key] = future.result()
                yield rows[key]
    except BrokenProcessPool:
        for item, key in tasks:
            if key not in rows:
                yield _alone(item, key, work, out, settings)


def _alone(item: Item, key: str, work: Work, out: Path, settings: Any) -> Row:
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(_do, item, key, work, out, settings).result()
    except BrokenProcessPool:
        return _failed(item, key, f"{item.path} killed its worker, by memory or by a crash.", "worker died")


def _do(item: Item, key: str, work: Work, out: Path, settings: Any) -> Row:
    folder = Path("views") / key[:2] / key
    try:
        (out / folder.parent).mkdir(parents=True, exist_ok=True)
        facts = work(item, key, out / folder, settings)
    except SvdError as error:
        return _failed(item, key, error.message)
    return Row(key, str(item.path), "done", "", item.licence, item.source, str(folder), facts)


def _failed(item: Item, key: str, reason: str, kind: str = "") -> Row:
    """`kind` is the reason without the item's name, so that equal reasons add up."""
    kind = kind or " ".join(word for word in reason.split() if str(item.path) not in word).strip()
    return Row(key, str(item.path), "failed", reason, item.licence, item.source, "", {"kind": kind})
