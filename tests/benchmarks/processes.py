"""What benchmarks share: work in processes of their own, whose memory is then their own too.

A script that is measured so is called again by itself with `--job JSON`, does that job, and prints what it
found as lines of JSON.
The parent stays small, since a child's peak begins with what its parent holds.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from typing import Any


def run_job(script: str, job: dict[str, Any]) -> list[dict[str, Any]]:
    """One job of `script` (its __file__) in a process of its own -> the objects that it printed; its errors, if it fails.

    What svdcli sets in this process's environment is none of the other side's.
    """
    own = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    command = [sys.executable, script, "--job", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=own)
    if done.returncode:
        sys.exit(f"{job} failed:\n{done.stderr}")
    answers = [line for line in done.stdout.splitlines() if line.startswith("{")]
    print(*(f"  {line}" for line in answers), sep="\n", file=sys.stderr, flush=True)
    return [json.loads(line) for line in answers]


def peak_mib() -> float:
    """The most memory that this process has held, MiB. Linux counts KiB, macOS bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 1024)
