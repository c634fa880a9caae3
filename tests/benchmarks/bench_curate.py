"""How a curation grows, and what kills do to it.

    python tests/benchmarks/bench_curate.py --sources 10 100 1000 --workers 1 2
    python tests/benchmarks/bench_curate.py --kills 50
    python tests/benchmarks/bench_curate.py --sources 20 --workers 1 2 --engine ray

Growth: small videos of two shots each, split, annotated (motion, camera), filtered and packed, from nothing; wall and
CPU seconds of all processes, and the most memory that the process held which supervises the others. Kills: the run is
killed at random instants, begun again each time, and what it leaves is compared byte for byte with an undisturbed run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
os.environ["PYTHONPATH"] = str(ROOT / "src")
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests" / "curate")]

from footage import kill_at_random, results, write_source  # noqa: E402

SCRIPT = ROOT / "tests" / "curate" / "footage.py"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sources", type=int, nargs="*", default=[])
    parser.add_argument("--workers", type=int, nargs="*", default=[1])
    parser.add_argument("--engine", choices=["pool", "ray"], default="pool")
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        for count in given.sources:
            for workers in given.workers:
                grow(home / f"{count}", home / f"out-{count}-{workers}", count, workers, given.engine)
        if given.kills:
            kill(home, given.kills, random.Random(given.seed))


def sources(folder: Path, count: int) -> Path:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        if not (folder / f"{number:04d}.mp4").exists():
            write_source(folder / f"{number:04d}.mp4", number)
    return folder


def grow(folder: Path, out: Path, count: int, workers: int, engine: str) -> None:
    sources(folder, count)
    before, begun = _cpu(), time.perf_counter()
    command = [sys.executable, SCRIPT, folder, out, workers, f"executor.engine={engine}"]
    answer = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout
    wall, cpu = time.perf_counter() - begun, _cpu() - before
    clips = len(list((out / "clips").rglob("*.mp4")))
    told = {
        "engine": engine,
        "sources": count,
        "workers": workers,
        "clips": clips,
        "wall_s": round(wall, 1),
        "cpu_s": round(cpu, 1),
        "cpu_s_a_source": round(cpu / count, 3),
        "supervisor_mib": int(answer.splitlines()[-1]),
    }
    print(json.dumps(told), flush=True)


def kill(home: Path, kills: int, rng: random.Random) -> None:
    folder = sources(home / "kill", 12)
    subprocess.run([sys.executable, str(SCRIPT), str(folder), str(home / "straight"), "2"], check=True)
    done, begun = 0, time.perf_counter()
    rounds = 0
    while done < kills:  # a run that ends between two kills is followed by another, from nothing
        out = home / f"killed{rounds}"
        done += kill_at_random(folder, out, kills - done, rng)
        same = results(out) == results(home / "straight")
        print(json.dumps({"round": rounds, "kills": done, "the_same_bytes": same}), flush=True)
        assert same, [k for k in results(out) if results(out)[k] != results(home / "straight").get(k)]
        rounds += 1
    print(json.dumps({"kills": done, "rounds": rounds, "wall_s": round(time.perf_counter() - begun)}))


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
