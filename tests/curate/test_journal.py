from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from svdcli.curate.journal import JOURNAL, Entry, Journal, Ledger, read_at


def entry(name: str, status: str = "done", **others: object) -> Entry:
    return Entry("split", f"id-{name}", name, status, **others)  # type: ignore[arg-type]


def test_what_is_appended_is_read_by_stage_and_key(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.append(entry("b", rows=[{"id": "b", "score": np.float32(0.5), "list": np.arange(2)}]))
        journal.append(entry("a", "failed", reason="No video.", command="svd", lost={"frozen": 1.5}))
        journal.append(Entry("annotate:motion", "clip", "clips/c.mp4", "done"))
    ledger = Ledger(tmp_path)
    assert [e.path for e in ledger.entries("split")] == ["a", "b"]
    assert [e.path for e in ledger.entries("split", "failed")] == ["a"]
    assert list(ledger.of("annotate:motion")) == ["clip"] and not ledger.of("annotate:text")
    found = ledger.entry(ledger.of("split")["b"])
    assert found.rows == [{"id": "b", "score": 0.5, "list": [0, 1]}] and found.at > 0
    assert read_at(ledger.place(ledger.of("split")["b"])) == found


def test_any_name_goes_through(tmp_path: Path) -> None:
    names = ["a b", "a\nb", 'a"b', "-rf", "\udcff\udcfe.mp4", "\u2028", "ü"]
    with Journal(tmp_path) as journal:
        for name in names:
            journal.append(entry(name))
    assert set(Ledger(tmp_path).of("split")) == set(names)


def test_a_torn_last_line_counts_as_not_written_at_every_byte(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.append(entry("a"))
        journal.append(entry("b"))
    whole = journal.path.read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(first, len(whole)):
        journal.path.write_bytes(whole[:end])
        ledger = Ledger(tmp_path)
        assert set(ledger.of("split")) == {"a"} and ledger.damaged == 0
    journal.path.write_bytes(whole)
    ledger.refresh()  # the rest of the line arrives
    assert set(ledger.of("split")) == {"a", "b"}


def test_the_last_line_on_an_item_counts_whichever_file_it_is_in(tmp_path: Path) -> None:
    with Journal(tmp_path) as one, Journal(tmp_path) as other:
        assert one.path != other.path
        other.append(entry("a", "failed", at=1.0))
        one.append(entry("a", at=2.0))
        other.append(entry("b", at=4.0))
        one.append(entry("b", "failed", at=3.0))
    marks = Ledger(tmp_path).of("split")
    assert (marks["a"].status, marks["b"].status) == ("done", "done")


def test_damage_within_a_journal_is_counted_and_costs_its_line_only(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        for name in "abc":
            journal.append(entry(name))
    lines = journal.path.read_bytes().splitlines(keepends=True)
    journal.path.write_bytes(lines[0] + b'{"stage": "spl\x00\n' + json.dumps([1]).encode() + b"\n" + lines[2])
    ledger = Ledger(tmp_path)
    assert set(ledger.of("split")) == {"a", "c"} and ledger.damaged == 2


def test_a_journal_without_lines_leaves_no_file(tmp_path: Path) -> None:
    with Journal(tmp_path):
        pass
    assert list((tmp_path / JOURNAL).iterdir()) == []
    with pytest.raises(StopIteration):
        next(Ledger(tmp_path).entries("split"))
