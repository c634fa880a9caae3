"""Votes in SQLite: a vote is on disk before it is answered for, a repeated one replaces itself, two raters never collide."""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from svdcli.errors import InputError
from svdcli.evaluate.prefer.study import CHECK_EVERY, VOTES, Comparison, Side, Study

Choice = Literal["left", "right", "tie", "bad"]
CHOICES: tuple[Choice, ...] = get_args(Choice)
"""`bad`: both are; it counts as a tie"""
_TABLE = """CREATE TABLE IF NOT EXISTS votes (
    rater TEXT NOT NULL, comparison TEXT NOT NULL, axis TEXT NOT NULL, choice TEXT NOT NULL, left TEXT NOT NULL,
    milliseconds INTEGER, at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP, origin TEXT NOT NULL,
    PRIMARY KEY (rater, comparison, axis))"""


@dataclass(frozen=True)
class Vote:
    """What one rater said of one comparison on one axis."""

    rater: str
    comparison: str
    axis: str
    choice: Choice
    left: Side
    """which of the comparison's videos stood left"""
    milliseconds: int | None = None

    @property
    def winner(self) -> Side | None:
        """a, b, or None for a tie."""
        if self.choice in ("tie", "bad"):
            return None
        other: Side = "b" if self.left == "a" else "a"
        return self.left if self.choice == "left" else other


@dataclass(frozen=True)
class Task:
    """What is asked next."""

    comparison: Comparison
    axis: str
    left: Side


class VoteStore:
    """The votes of a study. One connection behind a lock, as the server answers in threads."""

    def __init__(self, folder: Path, study: Study) -> None:
        self.study, self.comparisons, self.lock = study, study.by_id(), threading.Lock()
        try:
            self.base = sqlite3.connect(folder / VOTES, check_same_thread=False, timeout=60)
            self.base.execute("PRAGMA journal_mode=WAL")
            self.base.execute("PRAGMA synchronous=FULL")
            self.base.execute(_TABLE)
        except sqlite3.Error as error:
            raise InputError(
                f"{folder / VOTES} cannot be used: {error}.", "Check its rights, or the disk."
            ) from error

    def close(self) -> None:
        with self.lock:
            self.base.close()

    def add(self, vote: Vote, origin: str = "page") -> None:
        """Keep a vote; a rater's later vote on the same question replaces the earlier. Raises InputError."""
        known = self.comparisons.get(vote.comparison)
        if known is None or vote.axis not in self.study.axes or known.check not in ("", vote.axis):
            raise InputError(
                f"The study does not ask {vote.axis!r} of {vote.comparison!r}.", "Is it another study's?"
            )
        if vote.choice not in CHOICES or vote.left not in ("a", "b"):
            raise InputError(f"A vote is one of {', '.join(CHOICES)}, not {vote.choice!r}.")
        if not 0 < len(vote.rater) <= 80 or not vote.rater.isprintable():
            raise InputError("A rater's name has 1 to 80 printable characters.")
        row = vote.rater, vote.comparison, vote.axis, vote.choice, vote.left, vote.milliseconds, origin
        with self.lock, self.base:
            self.base.execute(
                "INSERT OR REPLACE INTO votes (rater, comparison, axis, choice, left, milliseconds, origin) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                row,
            )

    def votes(self) -> list[Vote]:
        """All votes, the oldest first."""
        with self.lock:
            rows = self.base.execute(
                "SELECT rater, comparison, axis, choice, left, milliseconds FROM votes ORDER BY rowid"
            ).fetchall()
        return [Vote(*row) for row in rows]

    def next_task(
        self, rater: str, pick: Callable[[Iterable[Comparison], list[Vote]], Comparison] | None = None
    ) -> Task | None:
        """What this rater is asked next, or None where nothing is left for them.

        One axis after the other (which first depends on the rater), attention checks evenly among the rest; of what the
        rater has not seen and has too few votes, that with the fewest, in an order of the rater's own; or what `pick` takes.
        """
        votes = self.votes()
        counts = Counter((v.comparison, v.axis) for v in votes)
        seen = {(v.comparison, v.axis) for v in votes if v.rater == rater}
        for axis in sorted(self.study.axes, key=lambda axis: _draw(rater, axis)):
            checks = [c for c in self.study.checks(axis) if (c.id, axis) not in seen]
            open_ = [
                c
                for c in self.study.pairs
                if (c.id, axis) not in seen and counts[c.id, axis] < self.study.votes
            ]
            num_pairs = sum(1 for c in self.study.pairs if (c.id, axis) in seen)
            due = num_pairs // CHECK_EVERY + (num_pairs % CHECK_EVERY >= CHECK_EVERY // 2)
            num_checks = len(self.study.checks(axis)) - len(checks)
            if checks and num_pairs and (num_checks < due or not open_):
                chosen = min(checks, key=lambda c: _draw(rater, c.id))
            elif open_ and pick is not None:
                chosen = pick(open_, [v for v in votes if v.axis == axis])
            elif open_:
                chosen = min(open_, key=lambda c: (counts[c.id, axis], _draw(rater, c.id)))
            else:
                continue
            return Task(chosen, axis, chosen.left(counts[chosen.id, axis]))
        return None

    def progress(self, rater: str) -> dict[str, int]:
        """Votes of this rater, votes of all (attention checks apart), and how many are wanted."""
        votes = self.votes()
        pairs = {c.id for c in self.study.pairs}
        return {
            "mine": sum(v.rater == rater for v in votes),
            "all": sum(v.comparison in pairs for v in votes),
            "wanted": len(pairs) * len(self.study.axes) * self.study.votes,
        }


def failed_checks(study: Study, votes: Iterable[Vote]) -> dict[str, tuple[int, int]]:
    """rater -> (attention checks failed, seen); whatever is not the right video is a failure."""
    checks = {c.id for c in study.comparisons if c.check}
    found: dict[str, tuple[int, int]] = {}
    for vote in votes:
        failed, seen = found.get(vote.rater, (0, 0))
        if vote.comparison in checks:
            failed, seen = failed + (vote.winner != "a"), seen + 1
        found[vote.rater] = failed, seen
    return found


def _draw(*parts: str) -> str:
    """An order that looks random, is each rater's own, and stays."""
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=8).hexdigest()
