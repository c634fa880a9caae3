"""The process pool: every item is worked on in a child that may be killed, so that an item costs itself at most.

What it is: spawned processes, each fed one item at a time over a pipe, with a deadline and a memory limit an item; one
that hangs, crashes or eats memory is killed with all it started, its item tried once more and then given up. What it
is not: a scheduler or a record; what became of an item leaves as an `Outcome`, and `journal` keeps it.

Children use one thread each, since there is one a core, and die with their parent, whatever ends it.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Literal, Protocol

import psutil

from svdcli.errors import InputError, MachineError, SvdError

Tell = Callable[[float], None]
"""what a worker calls with the seconds of footage that it found, by which its deadline is set"""
Handle = Callable[[Any, Tell], Any]
Fault = Literal["", "input", "machine", "wrong", "error", "crash", "deadline", "memory"]
"""what the item is, what this machine lacks, what must not be gone on with; then what befell the item"""

_TICK = 0.25  # seconds between two looks at clocks and memory
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_PR_SET_PDEATHSIG = 1
_AGAIN: tuple[Fault, ...] = ("crash", "deadline", "memory")
_FALSE_STARTS = 3


class Work(Protocol):
    """What the pool does with items; it is pickled into every child."""

    def open(self) -> Handle:
        """Called once in a child: load what is needed, and return what handles an item."""
        ...


@dataclass(frozen=True)
class Limits:
    """How far an item may go."""

    seconds: float = 120.0
    """deadline of an item, seconds, before its footage is known"""
    per_second: float = 20.0
    """what each second of footage adds to it, seconds"""
    start: float = 600.0
    """deadline of a child to load what it needs, seconds"""
    memory: int = 4 << 30
    """resident memory of a child and all that it starts, bytes"""
    recycle: int = 200
    """items after which a child is replaced"""
    attempts: int = 2


@dataclass(frozen=True)
class Outcome:
    """What became of an item."""

    item: Any
    value: Any = None
    fault: Fault = ""
    reason: str = ""
    """a sentence, where there is a fault"""
    hint: str = ""
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0


@dataclass
class _Child:
    process: Any
    connection: Connection
    deadline: float
    ready: bool = False
    task: _Task | None = None
    begun: float = 0.0
    handled: int = 0


@dataclass
class _Task:
    item: Any
    attempts: int = field(default=0)


class Pool:
    """`with Pool(work, 2, Limits()) as pool: for outcome in pool.map(items): ...`, in the order that they end."""

    def __init__(self, work: Work, workers: int, limits: Limits) -> None:
        self._work, self._size, self._limits = work, workers, limits
        self._children: list[_Child] = []
        self._again: deque[_Task] = deque()
        self._false_starts = 0
        self.num_lost = 0
        """children that died, or were killed, amid their work"""

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill whatever still runs."""
        while self._children:
            self._drop(self._children[0])

    def map(self, items: Iterable[Any]) -> Iterator[Outcome]:
        """An outcome an item. Items are taken as children come free, so an endless iterator is no harm.

        Raises what `Work.open` raises, and MachineError where children die before they begin.
        """
        tasks = map(_Task, items)
        pending = next(tasks, None)
        try:
            while True:
                while pending or self._again:
                    child = self._free_child()
                    if child is None:
                        break
                    if self._again:
                        self._assign(child, self._again.popleft())
                    else:
                        assert pending is not None
                        self._assign(child, pending)
                        pending = next(tasks, None)
                if not pending and not self._again and not any(child.task for child in self._children):
                    return
                yield from self._look()
        finally:  # left early: what is under way is nobody's any more
            self._again.clear()
            for child in [child for child in self._children if child.task]:
                self._drop(child)

    # ---- children

    def _free_child(self) -> _Child | None:
        """A child without a task, if need be a new one; None where all have one."""
        for child in self._children:
            if child.task is None:
                if child.handled < self._limits.recycle:
                    return child
                self._drop(child)
                break
        return self._start() if len(self._children) < self._size else None

    def _start(self) -> _Child:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(self._work, theirs, os.getpid()), daemon=True)
        with _as_children_begin():
            process.start()
        theirs.close()
        self._children.append(_Child(process, ours, time.monotonic() + self._limits.start))
        return self._children[-1]

    def _assign(self, child: _Child, task: _Task) -> None:
        task.attempts += 1
        child.task, child.begun = task, time.monotonic()
        if child.ready:
            child.deadline = child.begun + self._limits.seconds
        with suppress(OSError):  # it has died: seen at the next look
            child.connection.send(task.item)

    def _drop(self, child: _Child) -> None:
        """Kill a child and all that it started."""
        self._children.remove(child)
        self.num_lost += child.task is not None
        with suppress(ProcessLookupError, PermissionError, AttributeError):  # Windows has no groups
            os.killpg(child.process.pid, signal.SIGKILL)  # it leads a group of its own
        child.process.kill()
        child.process.join()
        child.connection.close()

    # ---- what they say

    def _look(self) -> list[Outcome]:
        """Wait for a moment; -> the items that ended in it."""
        ended: list[Outcome] = []
        wait([child.connection for child in self._children], timeout=_TICK)
        for child in list(self._children):
            try:
                while child.connection.poll():
                    ended += self._hear(child, *child.connection.recv())
            except (EOFError, OSError):
                ended += self._lose(child, "crash", _death(child.process))
                continue
            if (child.task or not child.ready) and time.monotonic() > child.deadline:
                ended += self._lose(child, "deadline", f"it was not done within {self._spent(child):.0f} s")
            elif child.task and (used := _memory(child.process.pid)) > self._limits.memory:
                ended += self._lose(child, "memory", f"it took {used >> 20} MiB of memory")
        return ended

    def _hear(self, child: _Child, kind: str, *values: Any) -> list[Outcome]:
        if kind == "ready":
            child.ready, child.begun = True, time.monotonic()
            child.deadline = child.begun + self._limits.seconds
            return []
        if kind == "footage":
            child.deadline = child.begun + self._limits.seconds + self._limits.per_second * values[0]
            return []
        if kind == "unable":
            raise MachineError(*values)
        assert child.task is not None
        task, child.task = child.task, None
        child.handled += 1
        value, fault, reason, hint, again, cpu = values
        if again and task.attempts < self._limits.attempts:
            self._again.append(task)
            return []
        return [Outcome(task.item, value, fault, reason, hint, time.monotonic() - child.begun, cpu)]

    def _lose(self, child: _Child, fault: Fault, how: str) -> list[Outcome]:
        """A child that has to go, and its item with it, if it was tried before."""
        task, wall = child.task, time.monotonic() - child.begun
        if not child.ready:
            self._false_starts += 1
            if self._false_starts >= _FALSE_STARTS:
                raise MachineError(
                    f"The processes that do the work die before they begin: {how}.",
                    "Run svd doctor, or with fewer --workers if memory is short.",
                )
        self._drop(child)
        if task is None:
            return []
        if not child.ready:
            task.attempts -= 1  # it was never looked at
        if task.attempts < self._limits.attempts:
            self._again.append(task)
            return []
        reason = f"{how[0].upper()}{how[1:]}, {task.attempts} times, and was killed."
        return [Outcome(task.item, None, fault, reason, "", wall)]

    def _spent(self, child: _Child) -> float:
        return child.deadline - child.begun if child.task and child.ready else self._limits.start


# ---- in the child


def _serve(work: Work, connection: Connection, parent: int) -> None:
    """The life of a child."""
    _die_with(parent)
    with suppress(OSError, AttributeError):
        os.setsid()  # so that it can be killed with all that it starts, and Ctrl-C is its parent's affair
    _be_silent()
    try:
        handle = work.open()
    except SvdError as error:
        connection.send(("unable", error.message, error.hint))
        return
    except Exception as error:
        connection.send(
            ("unable", f"A worker cannot begin: {type(error).__name__}: {error}.", "Run svd doctor.")
        )
        return
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(1)
    connection.send(("ready",))
    with suppress(EOFError, OSError):  # the parent has gone
        while True:
            item = connection.recv()
            before = _cpu()
            answer = _try(handle, item, lambda seconds: connection.send(("footage", seconds)))
            connection.send(("ended", *answer, _cpu() - before))


def _try(handle: Handle, item: Any, tell: Tell) -> tuple[Any, Fault, str, str, bool]:
    """-> value, fault, reason, hint, and whether to try again."""
    try:
        return handle(item, tell), "", "", "", False
    except InputError as error:
        return None, "input", error.message, error.hint, False
    except MachineError as error:
        return None, "machine", error.message, error.hint, False
    except SvdError as error:
        return None, "wrong", error.message, error.hint, False
    except MemoryError:
        return None, "memory", "It needs more memory than there is.", "", True
    except Exception as error:  # whatever a decoder or a model throws at one item is that item's
        return None, "error", _told(error), "", isinstance(error, OSError)


def _told(error: Exception) -> str:
    """An error that nobody foresaw, and where it arose."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    where = f" ({Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno})" if trace else ""
    return f"{type(error).__name__}: {str(error).rstrip('.')}{where}."


def _die_with(parent: int) -> None:
    """Have the system kill this process when its parent ends (Linux; elsewhere its next look at the pipe ends it)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before
        os._exit(1)


def _be_silent() -> None:
    """Decoders write to the terminal what nobody can place; what matters comes back over the pipe."""
    sink = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(sink, stream)


def _cpu() -> float:
    """CPU seconds of this process and of those it has waited for."""
    return float(sum(psutil.Process().cpu_times()[:4]))


# ---- seen from outside


@contextmanager
def _as_children_begin() -> Iterator[None]:
    """Within the block new processes are told to use one thread, which libraries read once, when they are loaded; and
    do not import the program that runs here, of which they need nothing."""
    before = {name: os.environ.get(name) for name in _THREADS}
    program = sys.modules["__main__"]
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = program
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _memory(pid: int) -> int:
    """Resident bytes of a process and all that it started."""
    try:
        process = psutil.Process(pid)
        return sum(p.memory_info().rss for p in (process, *process.children(recursive=True)))
    except psutil.Error:
        return 0


def _death(process: Any) -> str:
    """How a process ended, for the middle of a sentence."""
    process.join(timeout=5)
    code = process.exitcode
    if code is not None and code < 0:
        with suppress(ValueError):
            return f"its process died of {signal.Signals(-code).name}"
    return f"its process ended with code {code}"
