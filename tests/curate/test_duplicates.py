"""Of clips that show the same one stays, the same one as long as it is there."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from svdcli.curate.select.select import select
from svdcli.errors import InputError

pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("duckdb")

ONLY_TWINS = (
    "motion.drop=nothing",
    "aesthetic.drop=nothing",
    "similarity.drop=nothing",
    "text_area.drop=nothing",
)


def decided(folder: Path) -> dict[str, dict[str, object]]:
    return {row["clip"]: row for row in pq.read_table(folder / "selection.parquet").to_pylist()}


def test_the_keeper_is_named_and_stays_when_a_better_copy_comes(tmp_path: Path, corpus: ModuleType) -> None:
    of, other = corpus.source(0), corpus.source(1)
    small = corpus.clip(of, 0, 2, width=48, height=32)
    large = corpus.clip(of, 10, 2, width=192, height=128)
    alone = corpus.clip(of, 20, 2)
    corpus.write_rows(tmp_path, [of], [small, large, alone])
    corpus.write_hashes(tmp_path, [small, large, alone], {small.id: "x", large.id: "x"})
    found = select(tmp_path, corpus.settings(*ONLY_TWINS))
    (step,) = found.waterfall.steps
    assert step.reason.name == "duplicates" and step.dropped.clips == 1
    rows = decided(tmp_path)
    assert (rows[small.id]["kept"], rows[small.id]["keeper"]) == (False, large.id)
    assert rows[large.id]["kept"] and rows[alone.id]["kept"] and rows[large.id]["keeper"] == ""
    best = corpus.clip(other, 0, 3, width=960, height=640)
    corpus.write_rows(tmp_path, [other], [best])
    corpus.write_hashes(tmp_path, [best], {best.id: "x"})
    select(tmp_path, corpus.settings(*ONLY_TWINS))
    rows = decided(tmp_path)
    assert rows[large.id]["kept"] and {rows[best.id]["keeper"], rows[small.id]["keeper"]} == {large.id}
    select(tmp_path, corpus.settings(*ONLY_TWINS), refreeze=True)
    assert decided(tmp_path)[best.id]["kept"] and decided(tmp_path)[large.id]["keeper"] == best.id


def test_duplicates_do_not_weigh_in_percentiles(tmp_path: Path, corpus: ModuleType) -> None:
    of = corpus.source(0)
    clips = [corpus.clip(of, 10 * i, 2) for i in range(8)]
    corpus.write_rows(tmp_path, [of], clips)
    corpus.write_hashes(tmp_path, clips, {clip.id: "x" for clip in clips[:4]})
    values = dict(zip([clip.id for clip in clips], [0.0, 0, 0, 0, 1, 2, 3, 4], strict=True))
    corpus.write_numbers(tmp_path, "motion", "motion", values)
    found = select(tmp_path, corpus.settings(*ONLY_TWINS, "motion.drop=lowest 50%"))
    assert found.lock.axes["motion"].strata[""].lowest == 2.0  # of 0 1 2 3 4
    assert [step.dropped.clips for step in found.waterfall.steps] == [3, 2]


def test_without_hashes_it_stops(tmp_path: Path, corpus: ModuleType) -> None:
    of = corpus.source(0)
    clips = [corpus.clip(of, 10 * i, 2) for i in range(2)]
    corpus.write_rows(tmp_path, [of], clips)
    with pytest.raises(InputError, match="duplicates.packets: it was not computed"):
        select(tmp_path, corpus.settings(*ONLY_TWINS))
    corpus.write_hashes(tmp_path, clips[:1])
    with pytest.raises(InputError, match="of 1 clips there is none: 1 not measured yet") as error:
        select(tmp_path, corpus.settings(*ONLY_TWINS))
    assert "filter.duplicates=keep" in error.value.hint
