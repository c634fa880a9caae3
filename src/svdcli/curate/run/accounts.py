"""Accounts: what became of everything that went in, in inputs, clips and seconds, so that each sum is the input's."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from svdcli.curate import tables
from svdcli.curate.journal import ANNOTATE, REMOVE, SPLIT, Ledger

_MOST_REASONS = 10


@dataclass
class Accounts:
    """Of a curation folder, up to the scores; what is kept of the clips is the filter's to say."""

    inputs: dict[str, int] = field(default_factory=dict)
    """split, duplicate, failed, removed; their sum is all that was ever listed and worked on"""
    seconds: dict[str, float] = field(default_factory=dict)
    """of the inputs that could be read: in clips, in duplicates, removed, and lost by reason; their sum is the total"""
    total_seconds: float = 0.0
    """footage of the inputs that could be read"""
    clips: int = 0
    scores: dict[str, dict[str, int]] = field(default_factory=dict)
    """by annotator: computed, failed, not computed; their sum is the clips"""
    failures: dict[str, int] = field(default_factory=dict)
    """the most frequent reasons, without names"""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def accounts(folder: Path) -> Accounts:
    """Count it all anew, from the journal and the tables."""
    ledger, found = Ledger(folder), Accounts()
    removed = set(ledger.of(REMOVE))
    inputs: Counter[str] = Counter(split=0, duplicate=0, failed=0, removed=0)
    seconds: defaultdict[str, float] = defaultdict(float)
    reasons: Counter[str] = Counter()
    for entry in ledger.entries(SPLIT):
        status = {"done": "split"}.get(entry.status, entry.status)
        kind = "removed" if entry.item in removed and status != "failed" else status
        inputs[kind] += 1
        found.total_seconds += entry.seconds
        if kind != "split":
            seconds[f"{kind}s" if kind == "duplicate" else kind] += entry.seconds
            reasons.update([_without_names(entry.reason, entry.path)] if kind == "failed" else [])
            continue
        clips = entry.rows[1:]
        found.clips += len(clips)
        seconds["clips"] += sum(row["end"] - row["start"] for row in clips)
        for reason, lost in entry.lost.items():
            seconds[f"lost: {reason}"] += lost
    seconds.pop("failed", None)
    unexplained = found.total_seconds - sum(seconds.values())
    if abs(unexplained) > 1e-3 * max(1, inputs["split"]):  # what stamps in ticks round off
        seconds["unexplained"] = unexplained
    found.inputs, found.seconds, found.failures = (
        dict(inputs),
        dict(seconds),
        dict(reasons.most_common(_MOST_REASONS)),
    )
    found.scores = _scores(folder, ledger)
    return found


def _scores(folder: Path, ledger: Ledger) -> dict[str, dict[str, int]]:
    found = {}
    for table in sorted((folder / tables.TABLES / tables.SCORES).glob("*")):
        failed = {key for key, mark in ledger.of(ANNOTATE + table.name).items() if mark.status == "failed"}
        counts = {"computed": 0, "failed": 0, "not computed": 0}
        for row in tables.read(table, ["clip", "not_computed"]):
            without = "failed" if row["clip"] in failed else "not computed"
            counts[without if row["not_computed"] else "computed"] += 1
        found[table.name] = counts
    return found


def _without_names(reason: str, path: str) -> str:
    """A reason that counts together with those of other inputs."""
    return tables.readable(reason.replace(path, "It"))
