"""How far FVD can be believed: its value and spread against the number of videos, where the truth is 0.

    python tests/benchmarks/bench_fvd.py [--videos FOLDER] [--i3d FILE] [--out FOLDER]

Real videos are halved at random, again and again, and the halves compared, at growing numbers. Both should be 0; the Fréchet
distance is not, the kernel distance is. Writes fvd_by_number.svg and results.json, and prints both in short.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

from svdcli.evaluate.features import default_cache, measure_features
from svdcli.evaluate.frechet import frechet_distance, kernel_distance
from svdcli.evaluate.networks import open_network
from svdcli.evaluate.protocols import find_protocol
from svdcli.evaluate.videos import find_videos
from svdcli.io.curves import Line, chart

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"
NUM_DRAWS = 40


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=Path, default=SHARED / "videos")
    parser.add_argument("--i3d", default=str(SHARED / "weights" / "i3d_kinetics400_fp16.safetensors"))
    parser.add_argument("--frames", type=int, default=9)
    parser.add_argument("--fps", type=float, default=7.0)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "bench_fvd")
    options = parser.parse_args()
    if not options.videos.is_dir() or not Path(options.i3d).is_file():
        print("skipped: no folder of real videos, or no I3D network")
        return 0
    started = time.process_time()
    protocol = find_protocol("matched", options.frames, options.fps)
    found = measure_features(
        find_videos(options.videos), protocol, open_network(options.i3d), default_cache()
    )
    rng, rows = np.random.default_rng(0), []
    for num in [n for n in (8, 12, 16, 24, 32, 48, 64, 128, 256) if 2 * n <= len(found.features)]:
        values = []
        for _ in range(NUM_DRAWS):
            order = rng.permutation(len(found.features))
            halves = found.features[order[:num]], found.features[order[num : 2 * num]]
            values.append((frechet_distance(*halves), kernel_distance(*halves)))
        mean, spread = np.mean(values, 0), np.std(values, 0, ddof=1)
        rows.append(
            {"num": num, "fvd": mean[0], "fvd_sd": spread[0], "kernel": mean[1], "kernel_sd": spread[1]}
        )
    lines = [
        Line("mean", [(r["num"], r["fvd"]) for r in rows]),
        Line("mean + sd", [(r["num"], r["fvd"] + r["fvd_sd"]) for r in rows], faint=True),
        Line("mean - sd", [(r["num"], r["fvd"] - r["fvd_sd"]) for r in rows], faint=True),
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    title = "FVD of real videos to other real videos, by their number"
    (options.out / "fvd_by_number.svg").write_text(chart(title, lines, log=False), encoding="utf-8")
    result = {
        "rows": rows,
        "num_videos": len(found.names),
        "left_out": found.left_out,
        "cpu_seconds": round(time.process_time() - started, 1),
    }
    (options.out / "results.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        print(
            "n {num:4d}   FVD {fvd:8.1f} (sd {fvd_sd:6.1f})   kernel {kernel:8.3f} (sd {kernel_sd:.3f})".format(
                **row
            )
        )
    print(json.dumps({key: value for key, value in result.items() if key != "left_out"}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
