"""The pipeline on small real footage: killed, resumed, with one worker and two, with bad inputs of every kind."""

from __future__ import annotations

import json
import os
import random
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from footage import RECIPE, curate, kill_at_random, results, write_source  # noqa: E402

from svdcli.curate import tables  # noqa: E402
from svdcli.curate.journal import SPLIT, Entry, Journal, Ledger  # noqa: E402
from svdcli.curate.rows import CutClip, Source, clip_id  # noqa: E402
from svdcli.curate.run.accounts import accounts  # noqa: E402
from svdcli.curate.run.pipeline import (  # noqa: E402
    Watch,
    batches_to_measure,
    opened_folder,
    run_annotate,
    run_split,
)
from svdcli.curate.run.rebuild import make_scores_table, make_split_tables  # noqa: E402
from svdcli.errors import MachineError, RecipeError  # noqa: E402
from svdcli.recipe.curation import load_curation  # noqa: E402


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four videos, one of them twice, and what is no video."""
    folder = tmp_path_factory.mktemp("sources")
    for number in range(4):
        write_source(folder / f"{number}.mp4", number)
    (folder / "copy of 0.mp4").write_bytes((folder / "0.mp4").read_bytes())
    (folder / "bad.mp4").write_bytes(b"no video")
    (folder / "notes.txt").write_text("no video either")
    return folder


@pytest.fixture(scope="module")
def straight(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A curation that nothing disturbed, by one worker."""
    folder = tmp_path_factory.mktemp("straight") / "out"
    curate(str(sources), folder, 1)
    return folder


def test_every_input_is_accounted_for_in_number_and_seconds(straight: Path) -> None:
    found = accounts(straight)
    assert found.inputs == {"split": 4, "duplicate": 1, "failed": 1, "removed": 0}
    assert found.total_seconds == pytest.approx(5 * 2.0)
    assert sum(found.seconds.values()) == pytest.approx(found.total_seconds)
    assert found.seconds["duplicates"] == pytest.approx(2.0) and "unexplained" not in found.seconds
    assert found.clips >= 4 and all(sum(s.values()) == found.clips for s in found.scores.values())
    (failed,) = Ledger(straight).entries(SPLIT, "failed")
    assert failed.path.endswith("bad.mp4") and "not a video" in failed.reason
    assert failed.command.startswith("svd curate split ") and "bad.mp4" in failed.command
    (twin,) = Ledger(straight).entries(SPLIT, "duplicate")
    assert twin.path.endswith("copy of 0.mp4") and "0.mp4" in twin.reason


def test_two_workers_make_the_same_bytes(sources: Path, straight: Path, tmp_path: Path) -> None:
    curate(str(sources), tmp_path / "out", 2)
    assert results(tmp_path / "out") == results(straight)


def test_the_same_command_again_does_nothing(sources: Path, straight: Path) -> None:
    before = results(straight)
    journals = {path.name: path.stat().st_mtime_ns for path in (straight / "journal").iterdir()}
    curate(str(sources), straight, 1)
    assert results(straight) == before
    assert {path.name: path.stat().st_mtime_ns for path in (straight / "journal").iterdir()} == journals


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills the workers with their parent")
def test_killed_at_random_instants_it_ends_as_if_it_never_was(
    sources: Path, straight: Path, tmp_path: Path
) -> None:
    """`tests/benchmarks/bench_curate.py --kills 50` does it fifty times."""
    kills = kill_at_random(sources, tmp_path / "out", 3, random.Random(0), longest=1.0)
    assert kills == 3
    assert results(tmp_path / "out") == results(straight)
    entries = [
        line for path in (tmp_path / "out/journal").iterdir() for line in path.read_bytes().splitlines()
    ]
    split = [entry["path"] for entry in map(json.loads, entries) if entry["stage"] == SPLIT]
    assert len(split) <= len(set(split)) + 1 + kills  # one line a duplicate, and what a kill tore


# ---- with rows that nobody measured


def fake(folder: Path, *names: str) -> None:
    """Journal sources of two clips each, as if they had been split."""
    with Journal(folder) as journal:
        for name in names:
            source = f"{name:0>16}"
            about = Source(source, name, 9, "h264", 64, 48, Fraction(1, 10), 0, 20, 20, 10.0)
            clips = [
                CutClip(
                    clip_id(source, n, n + 10), source, n, n + 10, n / 10, n / 10 + 1, "start", "end", 1.0,
                    "clips/x.mp4", 9, "d", 64, 48, 10, 10.0, "copy",
                )
                for n in (0, 10)
            ]  # fmt: skip
            rows = [tables.to_row(about), *map(tables.to_row, clips)]
            journal.append(Entry(SPLIT, source, name, "done", rows=rows, seconds=2.0, stamp="1"))
    make_split_tables(folder)


def test_an_annotator_whose_needs_were_not_computed_is_not_computed(tmp_path: Path) -> None:
    fake(tmp_path, "a")
    recipe = load_curation(None, ["annotate.run=['aesthetic']"])
    with opened_folder(tmp_path, recipe):
        absent = run_annotate(tmp_path, recipe, Watch())
    assert "clip_embedding" in absent["aesthetic"] and "none was computed" in absent["aesthetic"]
    assert accounts(tmp_path).scores["aesthetic"] == {"computed": 0, "failed": 0, "not computed": 2}


class Standin:
    """An annotator by its face."""

    name, version, needs, batch = "standin", 7, (), 3
    columns = {"score": float}


def test_tables_follow_the_journal(tmp_path: Path) -> None:
    fake(tmp_path, "b", "a")
    table = tables.table_folder(tmp_path, "clips")
    names = [row["id"] for row in tables.read(table)]
    assert len(names) == 4 and names == sorted(names)
    fake(tmp_path, "c")  # appended, in a part of its own
    assert len(tables.parts(table)) == 2 and len(tables.keys(table)) == 6
    with Journal(tmp_path) as journal:
        journal.append(Entry("remove", f"{'a':0>16}", "a", "done"))
    make_split_tables(tmp_path)
    assert len(tables.keys(table)) == 4 and accounts(tmp_path).inputs["removed"] == 1
    assert accounts(tmp_path).seconds == {"clips": 4.0, "removed": 2.0}


def test_a_path_that_holds_something_else_now_replaces_its_clips(tmp_path: Path) -> None:
    fake(tmp_path, "a")
    (entry,) = Ledger(tmp_path).entries(SPLIT)
    with Journal(tmp_path) as journal:
        rows = [dict(entry.rows[0], id="f" * 16), dict(entry.rows[1], id="f" * 16 + "-0-10", source="f" * 16)]
        journal.append(replace(entry, item="f" * 16, rows=rows, stamp="2", at=0.0))
    make_split_tables(tmp_path)
    assert tables.keys(tables.table_folder(tmp_path, "sources")) == {"f" * 16}
    assert tables.keys(tables.table_folder(tmp_path, "clips")) == {"f" * 16 + "-0-10"}


def test_batches_are_the_same_after_a_kill_and_whole(tmp_path: Path) -> None:
    fake(tmp_path, "a", "b")
    recipe = load_curation(None)

    def batches() -> list[list[str]]:
        found = batches_to_measure(Standin(), tmp_path, Ledger(tmp_path), recipe)
        return [[clip.id for clip in batch.clips] for batch in found]

    first, second = batches()
    assert (len(first), len(second)) == (3, 1)
    done = [
        Entry("annotate:standin", name, "", "done", rows=[{"clip": name, "score": 0.5}], stamp="7")
        for name in first
    ]
    with Journal(tmp_path) as journal:
        for entry in done[:2]:  # killed while the first batch was written down
            journal.append(entry)
    assert batches() == [first, second]
    with Journal(tmp_path) as journal:
        journal.append(done[2])
        journal.append(Entry("annotate:standin", second[0], "", "failed", "It is damaged.", stamp="7"))
    assert batches() == []
    make_scores_table(tmp_path, Standin())
    table = tables.table_folder(tmp_path, "scores/standin")
    rows = {row["clip"]: (row["score"], row["not_computed"]) for row in tables.read(table)}
    assert rows == dict.fromkeys(first, (0.5, "")) | {second[0]: (None, "It is damaged.")}
    assert accounts(tmp_path).scores == {"standin": {"computed": 3, "failed": 1, "not computed": 0}}
    Standin.version = 8  # its results would differ now
    try:
        assert batches() == [first, second]
        make_scores_table(tmp_path, Standin(), "Its model is absent.")
        assert {row["not_computed"] for row in tables.read(table)} == {"Its model is absent."}
        assert accounts(tmp_path).scores["standin"]["computed"] == 0
    finally:
        Standin.version = 7


def test_other_ways_of_cutting_are_refused_once_there_are_clips(tmp_path: Path) -> None:
    recipe = load_curation(None)
    with opened_folder(tmp_path, recipe):
        with pytest.raises(MachineError, match="works in"), opened_folder(tmp_path, recipe):
            pass
        fake(tmp_path, "a")
    with opened_folder(tmp_path, load_curation(None, ["filter.motion.drop=nothing", "executor.workers=3"])):
        pass
    with pytest.raises(RecipeError, match="another split.clipping"):
        with opened_folder(tmp_path, load_curation(None, ["split.clipping=exact"])):
            pass


# ---- bad input


@pytest.mark.slow
def test_bad_inputs_are_each_accounted_for_and_none_stops_the_run(sources: Path, tmp_path: Path) -> None:
    """The list of peers' pitfalls: what hangs or crashes a decoder is in test_workers."""
    folder = tmp_path / "in"
    good = (sources / "0.mp4").read_bytes()
    bad = write_bad_inputs(folder, good)
    out = tmp_path / "out"
    recipe = load_curation(None, [*RECIPE, "executor.workers=2"])
    with opened_folder(out, recipe):
        run_split(str(folder), out, recipe, Watch())
    marks = {os.path.basename(path): mark.status for path, mark in Ledger(out).of(SPLIT).items()}
    assert {name: bad[name] if bad[name] == "any" else marks.get(name) for name in bad} == bad
    assert set(bad) <= set(marks)
    found = accounts(out)
    assert sum(found.inputs.values()) == len(marks)
    (ten,) = (entry for entry in Ledger(out).entries(SPLIT) if entry.path.endswith("ten hours.mp4"))
    assert ten.seconds == pytest.approx(2.0)
    assert sum(found.seconds.values()) == pytest.approx(found.total_seconds)
    for entry in Ledger(out).entries(SPLIT, "failed"):
        assert entry.reason.endswith(".") and entry.command
    assert not any(path.name == "pwned" for path in tmp_path.rglob("*"))


def write_bad_inputs(folder: Path, good: bytes) -> dict[str, str]:
    """Files that go wrong, and what each is to become."""
    import io
    import tarfile
    import zipfile

    import av
    import numpy as np

    folder.mkdir()
    expected: dict[str, str] = {}

    def add(name: str, data: bytes, status: str) -> None:
        path = os.path.join(os.fsencode(folder), os.fsencode(name))
        with open(path, "wb") as file:
            file.write(data)
        expected[name] = status

    add("a good.mp4", good, "done")
    add("zero.mp4", b"", "failed")
    add("text.mp4", b"only words, many of them", "failed")
    add("truncated.mp4", good[: len(good) // 3], "failed")
    add("list.m3u8", b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n", "failed")
    add("playlist.mp4", b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n", "failed")
    for number, name in enumerate(
        ["with space.mp4", "quo'te\".mp4", "new\nline.mp4", "-rf.mp4", "$(touch pwned).mp4"]
    ):
        add(name, good + bytes([number]), "done")
    add(os.fsdecode(b"\xff\xfe.mp4"), good + b"n", "done")
    add("wrong ending.txt", good + b"w", "done")
    header = bytearray(good + b"t")  # ten hours, it says, of which there are two seconds
    place = header.index(b"mvhd") + 16
    scale = int.from_bytes(header[place : place + 4], "big")
    header[place + 4 : place + 8] = (36_000 * scale).to_bytes(4, "big")
    add("ten hours.mp4", bytes(header), "done")
    flipped, rng = bytearray(good), random.Random(0)
    for _ in range(400):
        flipped[rng.randrange(len(good) // 8, len(good) * 3 // 4)] ^= 1 << rng.randrange(8)
    add("flipped.mp4", bytes(flipped), "any")
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.mp4", b"\0" * (8 << 20))
    add("bomb.zip", bomb.getvalue(), "failed")
    add("bomb.mp4", bomb.getvalue(), "failed")
    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    expected["sound.mp4"] = "failed"
    write_source(folder / "one frame.mp4", 5, shots=1, frames=1)
    expected["one frame.mp4"] = "failed"
    with tarfile.open(folder / "climb.tar", "w") as archive:
        for name in ("../../pwned", "ok.mp4"):
            info = tarfile.TarInfo(name)
            info.size = len(good)
            archive.addfile(info, io.BytesIO(good))
    expected["pwned"] = "failed"
    return expected
