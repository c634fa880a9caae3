"""What was not done, by reason, out of the journal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from svdcli.curate.journal import SPLIT, Entry, Ledger

FIRST = 40
"""entries that are kept of each reason"""


@dataclass
class Entries:
    """Of one reason."""

    count: int = 0
    first: list[Entry] = field(default_factory=list)


@dataclass(frozen=True)
class Failures:
    """Items that are not done."""

    count: int
    """that failed; what was filtered or a duplicate is none of these"""
    reasons: Mapping[tuple[str, str, str], Entries]
    """by stage, status and reason, the commonest first"""
    lost: Mapping[str, float]
    """seconds of sources that are in none of their clips, by reason"""


def find_failures(folder: Path) -> Failures:
    """Read the journal of a curation folder; what has none has no failures."""
    ledger, reasons, lost, count = (
        Ledger(folder),
        dict[tuple[str, str, str], Entries](),
        dict[str, float](),
        0,
    )
    for stage in sorted(ledger.marks):
        for entry in ledger.entries(stage, "failed", "filtered", "duplicate"):
            count += entry.status == "failed"
            entries = reasons.setdefault((entry.stage, entry.status, entry.reason), Entries())
            entries.count += 1
            if len(entries.first) < FIRST:
                entries.first.append(entry)
    for entry in ledger.entries(SPLIT, "done"):
        for reason, seconds in entry.lost.items():
            lost[reason] = lost.get(reason, 0.0) + seconds
    ordered = sorted(reasons.items(), key=lambda item: (item[0][1] != "failed", -item[1].count, item[0]))
    return Failures(count, dict(ordered), dict(sorted(lost.items(), key=lambda item: -item[1])))
