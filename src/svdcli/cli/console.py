"""The one thing that prints. stdout is data, stderr is talk.

Commands call `out.result(...)` once, at the end, with what they made; `out.say`, `out.warn` and
`out.progress` are talk on stderr. `--json` turns the result into exactly one JSON object, `--quiet` drops the
talk. Under several processes only the first speaks, except for errors, which any process may report.

Only what `svd --help` needs is imported here; Rich comes in when a table or a progress bar is drawn.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TextIO

_STYLES = {"error": "1;31", "warning": "33", "hint": "36", "bold": "1", "dim": "2"}
_LINE_SECONDS = 10.0  # off a terminal a progress line is due this often


class Progress(Protocol):
    """One running piece of work; `note` replaces the short remark at its end."""

    def advance(self, steps: float = 1, note: str | None = None) -> None: ...


class Console:
    """Knows human, JSON and quiet output. There is one, `out`; `main` resets it."""

    def __init__(self) -> None:
        self.reset()

    # ---- switches: set by the options that every command takes -----------------------------------------

    def reset(self) -> None:
        """Back to human output."""
        self.json = False
        self.quiet = False
        self.debug = False
        self._stdout: TextIO | None = None
        self._answered = False

    def use_json(self) -> None:
        """Keep stdout for the one object: whatever a library prints from here on goes to stderr.

        `main` puts `sys.stdout` back.
        """
        if not self.json:
            self.json = True
            self._stdout, sys.stdout = sys.stdout, sys.stderr

    # ---- data ------------------------------------------------------------------------------------------

    def result(self, data: Mapping[str, Any], lines: str | Iterable[str] = ()) -> None:
        """Answer the command: `data` as one JSON object under --json, else `lines` for a person or a pipe.

        To be called once, at the end: a failure before it leaves stdout empty.
        """
        assert not self._answered, "a command answers once"
        self._answered = True
        if not _first_process():
            return
        if self.json:
            lines = json.dumps(_plain(data), ensure_ascii=False, allow_nan=False)
        for line in [lines] if isinstance(lines, str) else lines:
            print(line, file=self._stdout or sys.stdout)

    def flush(self) -> None:
        """Push the data out, so that a closed pipe or a full disk shows before the exit code is decided."""
        (self._stdout or sys.stdout).flush()

    # ---- talk ------------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """A line of talk."""
        if not self.quiet and _first_process():
            print(text, file=sys.stderr)

    def next(self, command: str) -> None:
        """The command that a person would most likely run now."""
        self.say(f"{self.style('next:', 'hint')} {command}")

    def warn(self, text: str) -> None:
        """Something was done otherwise than asked, or may surprise. Said even under --quiet."""
        if _first_process():
            print(f"{self.style('warning:', 'warning')} {text}", file=sys.stderr)

    def error(self, message: str, hint: str = "") -> None:
        """The two lines that end a failed command."""
        print(f"{self.style('error:', 'error')} {_one_line(message)}", file=sys.stderr)
        if hint:
            print(f"{self.style('hint:', 'hint')} {_one_line(hint)}", file=sys.stderr)

    def style(self, text: str, style: str, stream: TextIO | None = None) -> str:
        """`text` in a colour where `stream` (stderr unless given) is a terminal that wants it."""
        if not _wants_colour(stream or sys.stderr):
            return text
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m"

    @contextmanager
    def progress(self, label: str, total: float) -> Iterator[Progress]:
        """A bar with the time left on a terminal; plain lines elsewhere; nothing under --quiet."""
        if self.quiet or not _first_process():
            yield _Silent()
        elif not sys.stderr.isatty():
            lines = _Lines(label, total)
            yield lines
            lines.close()
        else:
            from rich.console import Console as RichConsole
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(elapsed_when_finished=True),
                TextColumn("{task.fields[note]}"),
            )
            with RichProgress(*columns, console=RichConsole(stderr=True), redirect_stdout=False) as bar:
                yield _Bar(bar, bar.add_task(label, total=total, note=""))


def table(rows: Sequence[Sequence[str]], header: Sequence[str] = ()) -> list[str]:
    """Rows of cells as aligned lines, for `Console.result`; the last column is free in width."""
    cells = [list(header), *map(list, rows)] if header else [list(row) for row in rows]
    if not cells:
        return []
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]


def human_size(num_bytes: float) -> str:
    """Bytes as a person reads them: 312 MiB, 1.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if num_bytes >= 10 or unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"


class _Silent:
    def advance(self, steps: float = 1, note: str | None = None) -> None:
        pass


class _Bar:
    def __init__(self, bar: Any, task: Any) -> None:
        self._bar, self._task = bar, task

    def advance(self, steps: float = 1, note: str | None = None) -> None:
        self._bar.advance(self._task, steps)
        if note is not None:
            self._bar.update(self._task, note=note)


class _Lines:
    """Progress for log files: a line at most every ten seconds, and one at the end."""

    def __init__(self, label: str, total: float) -> None:
        self._label, self._total, self._done, self._note = label, total, 0.0, ""
        self._start = self._spoken = time.monotonic()

    def advance(self, steps: float = 1, note: str | None = None) -> None:
        self._done += steps
        self._note = self._note if note is None else note
        now = time.monotonic()
        if now - self._spoken >= _LINE_SECONDS and self._done < self._total:
            self._spoken = now
            left = (now - self._start) / self._done * (self._total - self._done)
            self._print(f"{self._done:g}/{self._total:g}, about {left:.0f} s left")

    def close(self) -> None:
        self._print(f"{self._done:g}/{self._total:g}, {time.monotonic() - self._start:.1f} s")

    def _print(self, state: str) -> None:
        print(f"{self._label}: {state} {self._note}".rstrip(), file=sys.stderr)


def _first_process() -> bool:
    """True in the process that speaks: Fabric, torchrun and SLURM run the command in every rank."""
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        if name in os.environ:
            return os.environ[name] == "0"
    return True


def _wants_colour(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _one_line(text: str) -> str:
    return " ".join(part.strip() for part in text.splitlines() if part.strip())


def _plain(value: Any) -> Any:
    """Paths, tuples, numpy and torch scalars as JSON has them; NaN and infinity as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if not isinstance(value, (str, int, bool, type(None))) and hasattr(value, "tolist"):
        return _plain(value.tolist())
    return value


out = Console()
