"""Small footage for the tests of the pipeline, and a whole curation of it as a script that can be killed."""

from __future__ import annotations

import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

RECIPE = (
    "annotate.run=['motion','camera']",
    "filter.motion.drop='lowest 25%'",
    "filter.aesthetic.drop=nothing",
    "filter.similarity.drop=nothing",
    "filter.text_area.drop=nothing",
    "filter.duplicates=keep",
    "split.min_seconds=0.5",
    "split.clipping=exact",
    "split.preset=ultrafast",
    "pack.shard_mib=1",
)
"""what can be computed without models, of short clips"""


def write_source(path: Path, seed: int, shots: int = 2, frames: int = 12) -> Path:
    """Shots of 96x64 at 12 frames a second, each a texture that drifts at a speed of its own."""
    from svdcli.io.video import write_video

    rng = np.random.default_rng(seed)
    pictures = []
    for _ in range(shots):
        texture = np.kron(rng.integers(0, 255, (16, 24, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
        speed = rng.uniform(0.5, 3.0)
        pictures += [np.roll(texture, int(t * speed), axis=1)[:64, :96] for t in range(frames)]
    write_video(path, np.stack(pictures), 12.0, {}, "mp4")
    return path


def curate(source: str, folder: Path, workers: int, *changes: str) -> None:
    """Split, annotate, filter and pack."""
    from svdcli.curate.packing.pack import pack
    from svdcli.curate.run.pipeline import Watch, opened_folder, run_annotate, run_split
    from svdcli.curate.select.select import select
    from svdcli.recipe.curation import load_curation

    recipe = load_curation(None, [*RECIPE, f"executor.workers={workers}", *changes])
    with opened_folder(folder, recipe):
        run_split(source, folder, recipe, Watch())
        run_annotate(folder, recipe, Watch())
        select(folder, recipe.filter)
        pack(folder, recipe.pack, folder / "dataset")


def results(folder: Path) -> dict[str, bytes]:
    """All that a curation made, less its journal, which tells of the way there."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).parts[0] != "journal" and path.name != ".lock"
    }


def kill_at_random(sources: Path, folder: Path, kills: int, rng: random.Random, longest: float = 4.0) -> int:
    """Begin, kill at an instant within `longest` seconds of work, and begin again, so many times; then let it end.

    -> kills: fewer than asked where it ended before.
    """
    command = [sys.executable, __file__, str(sources), str(folder), "1"]
    done = 0
    while done < kills:
        before = _begun(folder)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while process.poll() is None and _begun(folder) == before:
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, longest))
        process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            return done
        assert process.returncode == -signal.SIGKILL
        done += 1
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return done


def _begun(folder: Path) -> int:
    """When the run that works in a folder began, or the one that was killed in it."""
    mark = folder / ".running"
    return mark.stat().st_mtime_ns if mark.exists() else 0


if __name__ == "__main__":
    curate(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)  # MiB that the supervisor held at most
