"""The journal: what became of every item at every stage, one line of JSON each, and the truth about it.

What it is: append-only files, one a process that writes, so that any number may write at once, on any file system, and
any engine goes on where any other stopped. What it is not: the tables, which are made from it (`tables`).

A line that a kill tore off counts as not written: its item is done again, to the same result. Lines are in the
system's hands as soon as they are written, which a kill does not undo; on disk at latest SYNC_SECONDS later, so that
a power cut costs a moment of work.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple

from svdcli.errors import UsageError

JOURNAL = "journal"
"""its folder within a curation folder"""
SPLIT, ANNOTATE, REMOVE, VIEWS = "split", "annotate:", "remove", "views"
"""stages: `split` and `views` by path, `annotate:NAME` by clip, `remove` by source"""
SYNC_SECONDS = 2.0

Status = Literal["done", "failed", "filtered", "duplicate"]


@dataclass(frozen=True)
class Entry:
    """What became of an item at a stage."""

    stage: str
    item: str
    """id of the source or of the clip; "" where a source could not be read so far as to have one"""
    path: str
    """where the item lies: an input as it was listed, a clip from the curation folder"""
    status: Status
    reason: str = ""
    """a sentence, where it is not done"""
    command: str = ""
    """what a person types to see it happen again, where it failed"""
    rows: Sequence[Mapping[str, Any]] = ()
    """of a split source: its row, then its clips'; of an annotated clip: its scores"""
    seconds: float = 0.0
    """footage"""
    lost: Mapping[str, float] = field(default_factory=dict)
    """seconds of a split source that are in none of its clips, by reason"""
    stamp: str = ""
    """what the item was when it was worked on: an input's size and time of change, the version of an annotator"""
    at: float = 0.0
    """when it was written, seconds since 1970: the last line on an item counts"""

    @property
    def key(self) -> str:
        """What the item is known by at its stage: an input by its path, all else by its id."""
        return self.path if self.stage in (SPLIT, VIEWS) else self.item


class Journal:
    """`with Journal(folder) as journal: journal.append(entry)`: a new file of this process's own."""

    def __init__(self, folder: Path) -> None:
        """`folder` is the curation folder. Raises UsageError where it cannot be written."""
        name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}.jsonl"
        self.path = folder / JOURNAL / name
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "ab", buffering=0)
        except OSError as error:
            raise UsageError(
                f"{self.path} cannot be written: {error.strerror}.", "Choose another folder."
            ) from error
        self._synced = time.monotonic()

    def append(self, entry: Entry) -> None:
        """Write the line at once. Raises OSError where the disk is full, which `main` makes a sentence."""
        values = asdict(entry) | {"at": entry.at or time.time()}
        line = (
            json.dumps(values, default=_plain, separators=(",", ":")) + "\n"
        )  # ASCII: any name goes through
        data = line.encode("ascii")
        while data:
            data = data[self._file.write(data) :]
        if time.monotonic() - self._synced >= SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sync()
        self._file.close()
        if not self.path.stat().st_size:
            self.path.unlink()


class Mark(NamedTuple):
    """Where the last line on an item lies."""

    status: Status
    item: str
    stamp: str
    file: int
    offset: int
    at: float


class Ledger:
    """All that the journals say, held as places in them: a few hundred bytes an item, whatever its rows hold."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: list[Path] = []
        self.marks: dict[str, dict[str, Mark]] = {}
        """by stage, then by `Entry.key`"""
        self.damaged = 0
        """lines that are no entries; a torn last line is none of them"""
        self._read: dict[Path, int] = {}
        self.refresh()

    def refresh(self) -> None:
        """Take in what has been written since."""
        for path in sorted((self.folder / JOURNAL).glob("*.jsonl")):
            if path not in self._read:
                self.files.append(path)
                self._read[path] = 0
            index = self.files.index(path)
            for offset, line in _lines(path, self._read[path]):
                self._read[path] = offset + len(line)
                self._take(index, offset, line)

    def of(self, stage: str) -> Mapping[str, Mark]:
        """The marks of a stage, by key."""
        return self.marks.get(stage, {})

    def entry(self, mark: Mark) -> Entry:
        """The line itself."""
        with open(self.files[mark.file], "rb") as file:
            file.seek(mark.offset)
            return Entry(**json.loads(file.readline()))

    def entries(self, stage: str, *statuses: Status) -> Iterator[Entry]:
        """The last entry on each item of a stage, in the order of their keys; only of those statuses if any."""
        marks = self.of(stage)
        for key in sorted(marks):
            if not statuses or marks[key].status in statuses:
                yield self.entry(marks[key])

    def place(self, mark: Mark) -> tuple[str, int]:
        """File and first byte of a line, for another process to read it: `read_at`."""
        return str(self.files[mark.file]), mark.offset

    def _take(self, index: int, offset: int, line: bytes) -> None:
        try:
            entry = Entry(**json.loads(line))
        except (ValueError, TypeError):
            self.damaged += 1
            return
        marks = self.marks.setdefault(entry.stage, {})
        before = marks.get(entry.key)
        if before is None or entry.at >= before.at:
            marks[entry.key] = Mark(entry.status, entry.item, entry.stamp, index, offset, entry.at)


def read_at(place: tuple[str, int]) -> Entry:
    """The entry at a place that a ledger gave."""
    with open(place[0], "rb") as file:
        file.seek(place[1])
        return Entry(**json.loads(file.readline()))


def _lines(path: Path, start: int) -> Iterator[tuple[int, bytes]]:
    """(first byte, line) of every whole line from `start` on."""
    with open(path, "rb") as file:
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):  # torn, or being written at this moment
                return
            yield start, line
            start += len(line)


def _plain(value: Any) -> Any:
    """Numbers and arrays of numpy, which annotators may return, as JSON has them."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} does not go into a journal")
