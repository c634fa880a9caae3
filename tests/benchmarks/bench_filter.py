"""The filter on ten million clips: made-up tables, the paper's four axes, thresholds, waterfall and selection.

    python tests/benchmarks/bench_filter.py [--clips N] [--memory 2GB] [--folder DIR]

The tables are those that curation writes, scores in tables of their own, one of them in another order than the clips. Seconds
are of the wall and of the processors; memory is the peak of the process, tables made in a child that is not counted.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path

import numpy as np
from processes import peak_mib

CHUNK = 500_000
CLIPS_A_SOURCE = 11
AXES = {"motion": "motion", "aesthetic": "aesthetic", "similarity": "similarity", "text": "text_area"}


def make_tables(folder: Path, count: int) -> None:
    """Clips of about 11 a source and 10 s each; scores that lean on each other as real ones do."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from svdcli.curate.tables import table_folder

    rng = np.random.default_rng(0)
    names = ["sources", "clips", *(f"scores/{name}" for name in AXES)]
    folders = {name: table_folder(folder, name) for name in names}
    for path in folders.values():
        path.mkdir(parents=True)
    for part, first in enumerate(range(0, count, CHUNK)):
        numbers = np.arange(first, min(first + CHUNK, count))
        sources = pa.array(
            [f"{n * 0x9E3779B97F4A7C15 % 2**64:016x}" for n in (numbers // CLIPS_A_SOURCE).tolist()]
        )
        starts = numbers % CLIPS_A_SOURCE * 300_000
        ends = starts + rng.integers(100_000, 299_999, len(numbers))
        ids = pa.array([f"{s}-{a}-{b}" for s, a, b in zip(sources.to_pylist(), starts, ends, strict=True)])
        quality = rng.normal(size=len(numbers))
        scores = {
            "motion": np.exp(quality + rng.normal(size=len(numbers))),
            "aesthetic": 5 + quality,
            "similarity": 0.25 + 0.05 * rng.normal(size=len(numbers)),
            "text": np.maximum(0, 0.05 * rng.normal(size=len(numbers))),
        }
        tables = {
            "sources": {"id": sources.unique()},
            "clips": {"id": ids, "source": sources, "start": starts / 25_600, "end": ends / 25_600,
                      "width": np.full(len(numbers), 1280), "height": np.full(len(numbers), 720)},
        }  # fmt: skip
        for name, values in scores.items():
            order = rng.permutation(len(numbers)) if name == "text" else np.arange(len(numbers))
            tables[f"scores/{name}"] = {
                "clip": ids.take(pa.array(order)), "version": np.ones(len(numbers), np.int64),
                AXES[name]: values[order], "not_computed": pa.array([""] * len(numbers)),
            }  # fmt: skip
        for name, columns in tables.items():
            pq.write_table(pa.table(columns), folders[name] / f"part-{part:05d}.parquet", compression="zstd")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=lambda text: int(float(text)), default=10_000_000)
    parser.add_argument("--memory", default="2GB", help="of DuckDB")
    parser.add_argument("--folder", type=Path, help="keep the tables there, or use those that are there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary) / "corpus"
        if not folder.exists():
            child = multiprocessing.get_context("spawn").Process(
                target=make_tables, args=(folder, options.clips)
            )
            child.start()
            child.join()
        measure(folder, options.memory)


def measure(folder: Path, memory: str) -> None:
    from svdcli.curate.select.select import select
    from svdcli.recipe.curation import load_curation

    settings = load_curation(None, ["filter.duplicates=keep"]).filter
    print(f"{sum(path.stat().st_size for path in folder.rglob('*.parquet')) / 1e6:.0f} MB of Parquet")
    for name, options in (
        ("waterfall and thresholds", {"refreeze": True, "write": False}),
        ("the same, written", {"refreeze": True}),
        ("again, by the lock", {}),
    ):
        wall, processors = time.perf_counter(), time.process_time()
        found = select(folder, settings, memory=memory, **options)  # type: ignore[arg-type]
        wall, processors = time.perf_counter() - wall, time.process_time() - processors
        peak = peak_mib() / 1024
        all_, kept = found.waterfall.all, found.waterfall.kept
        print(
            f"{name}: {wall:.1f} s, {processors:.1f} CPU-s, peak {peak:.2f} GiB; kept {kept.clips} of {all_.clips}"
        )


if __name__ == "__main__":
    main()
