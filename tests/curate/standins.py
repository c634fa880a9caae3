"""Work for the pool that behaves as bad footage does. Children import it by name."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svdcli.curate.journal import SPLIT, Entry
from svdcli.curate.run.workers import Outcome
from svdcli.errors import InputError, MachineError
from svdcli.io.files import atomic_path


@dataclass(frozen=True)
class Behave:
    """Does what each item says."""

    folder: str = ""
    unable: str = ""

    def open(self) -> Callable[[Any, Callable[[float], None]], Any]:
        if self.unable == "machine":
            raise MachineError("There is no model.", "pip install it")
        if self.unable == "crash":
            os._exit(3)
        return self.handle

    def handle(self, item: Any, tell: Callable[[float], None]) -> Any:
        kind, _, argument = str(item).partition(":")
        if self.folder:
            with open(Path(self.folder) / "tried", "a") as file:
                file.write(f"{item}\n")
        if kind == "crash":
            ctypes.string_at(0)
        elif kind == "hang":
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            (Path(self.folder) / "grandchild").write_text(str(child.pid))
            while True:
                pass
        elif kind == "long":  # more footage, more time
            tell(float(argument))
            time.sleep(1.5)
        elif kind == "eat":
            held = bytearray(600 << 20)
            held[::4096] = b"x" * len(held[::4096])
            time.sleep(30)
        elif kind == "bad":
            raise InputError("It has no video stream.", "Leave it out.")
        elif kind == "bug":
            raise ValueError("no such codec.")
        elif kind == "once":  # fails the first time only
            mark = Path(self.folder) / "once"
            if not mark.exists():
                mark.touch()
                raise OSError("connection reset")
        elif kind == "threads":
            return {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        elif kind == "pid":
            return os.getpid()
        elif kind == "print":
            print("noise")
            os.write(2, b"noise")
        return f"did {item}"


@dataclass(frozen=True)
class KilledAmid:
    """A stage whose every item dies while it writes a clip."""

    folder: str

    def open(self) -> Callable[[Any, Callable[[float], None]], Any]:
        return self.handle

    def handle(self, item: Any, tell: Callable[[float], None]) -> Any:
        with atomic_path(Path(self.folder) / "clips" / f"{item}.mp4") as temporary:
            temporary.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)

    def stage(self, item: Any) -> str:
        return SPLIT

    def entries(self, outcome: Outcome) -> list[Entry]:
        return [Entry(SPLIT, outcome.item, outcome.item, "failed", outcome.reason)]

    def parts(self, item: Any) -> Sequence[Any]:
        return ()

    def keys(self, item: Any) -> Sequence[str]:
        return [item]
