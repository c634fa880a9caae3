"""Two runs in one folder are refused; a lock that a kill left behind is none."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import types
from pathlib import Path

import psutil
import pytest

from svdcli.errors import MachineError, UsageError
from svdcli.io import lock as module
from svdcli.io.lock import LOCK, lock_run, require_free

HOLDER = """
import sys, time
from pathlib import Path
from svdcli.io.lock import lock_run
with lock_run(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_another_process_is_refused_until_it_is_killed(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        for use in (require_free, lambda folder: lock_run(folder).__enter__()):
            with pytest.raises(
                MachineError, match=f"Process {holder.pid} on .* works in {tmp_path}"
            ) as caught:
                use(tmp_path)
            assert "another folder" in caught.value.hint
    finally:
        holder.kill()
        holder.wait()
    require_free(tmp_path)
    with lock_run(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
        with pytest.raises(MachineError, match="works in"), lock_run(tmp_path):
            pass
    require_free(tmp_path)


@pytest.mark.parametrize("locks", ["none", "refused"])
def test_without_locks_of_the_system_the_file_counts_while_its_process_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no locks here")

    there = types.SimpleNamespace(flock=refuse, LOCK_EX=2, LOCK_NB=4)
    monkeypatch.setattr(module, "fcntl", None if locks == "none" else there)
    parent = os.getppid()
    alive = {"pid": parent, "host": socket.gethostname(), "started": psutil.Process(parent).create_time()}
    require_free(tmp_path)
    for holder, held in (
        (alive, True),
        (alive | {"started": 1.0}, False),  # its number went to another process
        (alive | {"pid": 2**22 + 1}, False),
        (alive | {"host": "elsewhere"}, True),
    ):
        (tmp_path / LOCK).write_text(json.dumps(holder))
        if held:
            with pytest.raises(MachineError, match="works in"):
                require_free(tmp_path)
        else:
            require_free(tmp_path)
    (tmp_path / LOCK).unlink()
    with lock_run(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written"), lock_run(tmp_path / "none"):
        pass
