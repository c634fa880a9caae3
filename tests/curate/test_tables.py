from __future__ import annotations

from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path

import pytest

from svdcli.curate import tables
from svdcli.curate.rows import CutClip, Source
from svdcli.errors import InputError

SOURCE = Source(
    "ab" * 8, "a.mp4", 9, "h264", 64, 48, Fraction(1, 12800), -7, 99, 24, 29.97, sample_aspect=Fraction(4, 3)
)
CLIP = CutClip(
    "s-0-9",
    "s",
    0,
    9,
    0.0,
    1.0,
    "start",
    "end",
    1.0,
    "clips/a.mp4",
    9,
    "d",
    64,
    48,
    9,
    9.0,
    "copy",
    (1, 2, 3, 4),
)


def write(folder: Path, rows: list[dict[str, object]], part_rows: int = 4) -> list[Path]:
    return tables.append(folder, rows, tables.row_schema(CutClip), part_rows=part_rows)


def clips(*numbers: int) -> list[dict[str, object]]:
    return [tables.to_row(replace(CLIP, id=f"s-{n:03d}", size=n)) for n in sorted(numbers)]


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("value", [SOURCE, CLIP], ids=["source", "clip"])
def test_rows_go_through_parquet_unchanged(tmp_path: Path, value: object) -> None:
    row = tables.to_row(value)
    tables.append(tmp_path, [row], tables.row_schema(type(value)))
    (found,) = tables.read(tmp_path)
    assert found == row and tables.from_row(type(value), found) == value
    assert tables.from_row(type(value), found | {"later": 1}) == value
    found.popitem()
    with pytest.raises(InputError, match="has no column"):
        tables.from_row(type(value), found)


def test_the_columns_are_the_fields_and_fractions_are_two_integers() -> None:
    names = tables.row_schema(Source).names
    assert "time_base_num" in names and "time_base_den" in names and "time_base" not in names
    assert set(asdict(CLIP)) == set(tables.row_schema(CutClip).names)
    scores = tables.scores_schema({"motion": float, "boxes": list, "kind": str})
    assert scores.names == ["clip", "version", "motion", "boxes", "kind", "not_computed"]


def test_only_new_keys_are_added_as_new_parts(tmp_path: Path) -> None:
    assert [p.name for p in write(tmp_path, clips(*range(6)))] == ["part-00000.parquet", "part-00001.parquet"]
    before = bytes_of(tmp_path)
    assert write(tmp_path, clips(*range(6))) == [] and bytes_of(tmp_path) == before
    assert [p.name for p in write(tmp_path, clips(*range(8)))] == ["part-00002.parquet"]
    assert {name: data for name, data in bytes_of(tmp_path).items() if name in before} == before
    assert [row["size"] for row in tables.read(tmp_path, ["size"])] == list(range(8))


def test_begun_again_after_any_part_the_bytes_are_the_same(tmp_path: Path) -> None:
    rows = clips(*range(17))
    write(tmp_path / "straight", rows)
    for stop in range(5):
        folder = tmp_path / f"killed{stop}"
        for part in write(folder, rows)[stop:]:
            part.unlink()  # as if it had been killed before this one
        write(folder, rows)
        assert bytes_of(folder) == bytes_of(tmp_path / "straight")
    assert len(bytes_of(tmp_path / "straight")) == 5


def test_removing_touches_only_the_parts_that_hold_the_rows(tmp_path: Path) -> None:
    write(tmp_path, clips(*range(12)))
    before = bytes_of(tmp_path)
    assert [
        p.name for p in tables.remove(tmp_path, ["s-001", "s-008", "s-009", "s-010", "s-011", "none"])
    ] == [
        "part-00000.parquet",
        "part-00002.parquet",
    ]
    assert tables.keys(tmp_path) == {f"s-{n:03d}" for n in (0, 2, 3, 4, 5, 6, 7)}
    after = bytes_of(tmp_path)
    assert after["part-00001.parquet"] == before["part-00001.parquet"] and "part-00002.parquet" not in after
    assert tables.remove(tmp_path, []) == []


def test_names_that_are_no_utf8_are_written_readably(tmp_path: Path) -> None:
    row = tables.to_row(replace(SOURCE, path="a\udcff\n.mp4"))
    tables.append(tmp_path, [row], tables.row_schema(Source))
    assert next(tables.read(tmp_path))["path"] == "a\\xff\n.mp4"


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    (part,) = write(tmp_path, clips(1))
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(InputError, match="part-00000"):
        list(tables.read(tmp_path))
