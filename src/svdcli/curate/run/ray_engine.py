"""The engine on Ray Data: the same stages on a cluster. What travels are paths and places, never bytes.

What it is: tasks of a few items each, mapped over actors; every actor has a child that does the native work, so that a
decoder that dies takes no actor with it, and writes a journal of its own in the curation folder, which all machines see.
What it is not: the record; when Ray is done, or has lost workers, the journal says what is missing, and that is tried
again, at last without success noted as failed. So the run ends, and any engine can go on from it.

Ray waits for ever, and says nothing, where actors want more CPUs than there are (ray #44687): that is refused before
anything starts. The rows are fed by `from_items`, which takes no CPU to read.
"""

from __future__ import annotations

import logging
import os
import pickle
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from svdcli import __version__
from svdcli.curate.journal import Entry, Journal, Ledger
from svdcli.curate.run.fetch import SCRATCH
from svdcli.curate.run.stages import Stage, drain
from svdcli.curate.run.workers import Limits, Outcome, Pool
from svdcli.errors import MachineError, SvdError

if TYPE_CHECKING:
    from svdcli.recipe.curation import Executor

ROUNDS = 3
"""how often what went missing with a worker is tried"""
QUIET_SECONDS = 180.0
"""without a sign of life from any actor for so long, Ray is taken to hang"""
_BEAT_SECONDS = 5.0
_OBJECT_STORE = 512 << 20  # bytes; paths need no more
_LOST = f"The worker of Ray that had it was lost {ROUNDS} times."


class RayEngine:
    """`with RayEngine(...) as run: for entry in run(items): ...`, as `engines.Engine` says."""

    def __init__(self, work: Stage, folder: Path, executor: Executor, models: bool) -> None:
        """Raises MachineError where Ray is absent, cannot be reached, or would wait for ever."""
        from svdcli.curate.run.engines import limits

        self._work, self._folder, self._executor = work, folder.absolute(), executor
        self._limits = limits(executor, models)
        self._ray = connect(executor.address)
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        wanted = executor.model_workers if models else executor.workers
        self._gpus = (
            1.0 if models and executor.device != "cpu" and any(node.get("GPU") for node in nodes) else 0.0
        )
        self._size = preflight(nodes, self._ray.available_resources(), wanted, self._gpus)
        _check_nodes(self._ray, self._folder)

    def __enter__(self) -> RayEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ray itself stays, for the next stage: it ends with this process, or belongs to a cluster."""

    def __call__(self, items: Sequence[Any]) -> Iterator[Entry]:
        missing = {key: item for item in items for key in self._work.keys(item)}
        stage = self._work.stage(items[0])
        for _ in range(ROUNDS):
            if not missing:
                return
            for entry in self._round(_once(missing.values()), stage):
                if missing.pop(entry.key, None):
                    yield entry
        with Journal(self._folder) as journal:
            for item in _once(missing.values()):
                for entry in self._work.entries(Outcome(item, fault="crash", reason=_LOST)):
                    if entry.key in missing:
                        journal.append(entry)
                        yield entry

    def _round(self, items: Sequence[Any], stage: str) -> Iterator[Entry]:
        """One pass of Ray Data over the items; -> what the journals say, as they say it."""
        size = self._executor.batches_a_task
        size = max(1, min(size, -(-len(items) // self._size)))
        tasks = [pickle.dumps(items[i : i + size]) for i in range(0, len(items), size)]
        ledger = Ledger(self._folder)
        seen = dict(ledger.of(stage))
        run = _Running(self._ray, tasks, self._size, self._gpus, (self._work, self._folder, self._limits))
        last, beats = time.monotonic(), _beats(self._folder)
        while True:
            over = not run.thread.is_alive()
            ledger.refresh()
            for key, mark in list(ledger.of(stage).items()):
                if seen.get(key) != mark:
                    seen[key] = mark
                    yield ledger.entry(mark)
            if over:
                run.raise_fault()
                return
            now = _beats(self._folder)
            if now != beats:
                last, beats = time.monotonic(), now
            if time.monotonic() - last > QUIET_SECONDS:
                raise MachineError(
                    f"Ray has shown no sign of life for {QUIET_SECONDS:.0f} s.",
                    "End it, and run the same command with --engine pool or a larger cluster: it goes on from here.",
                )
            time.sleep(0.5)


def _once(items: Iterable[Any]) -> list[Any]:
    """Each object once, in their order."""
    return list({id(item): item for item in items}.values())


class _Running:
    """A dataset of Ray that is worked through in a thread of its own, so that it can be given up."""

    def __init__(
        self, ray: Any, tasks: Sequence[bytes], size: int, gpus: float, makings: tuple[Any, ...]
    ) -> None:
        self._fault: BaseException | None = None
        self._stop: str = ""
        rows = [{"task": task} for task in tasks]
        data = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            Actor,
            fn_constructor_args=makings,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(size, len(rows))),
            num_cpus=1,
            num_gpus=gpus or None,
        )
        self.thread = threading.Thread(target=self._consume, args=(data,), daemon=True)
        self.thread.start()

    def _consume(self, data: Any) -> None:
        try:
            for row in data.iter_rows():
                self._stop = self._stop or row["stop"]
        except Exception as error:  # a worker that was lost for good: the journal tells what is missing
            self._fault = error

    def raise_fault(self) -> None:
        """What stops the stage, on whatever machine it arose."""
        kind, _, message = self._stop.partition(":")
        if kind:
            raise (MachineError if kind == "machine" else SvdError)(message)


class Actor:
    """Lives in a worker of Ray, and works through tasks by a pool of one child."""

    def __init__(self, work: Stage, folder: Path, limits: Limits) -> None:
        self._work, self._folder, self._limits = work, folder, limits
        self._thread = ThreadPoolExecutor(1)  # one that lives as long as this: children die with their thread
        self._pool: Pool | None = None
        self._journal = Journal(folder)
        self._beat = folder / SCRATCH / f"beat-{self._journal.path.stem}"
        self._beat.parent.mkdir(parents=True, exist_ok=True)
        threading.Thread(target=self._live, daemon=True).start()

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[str]]:
        return {
            "stop": [self._thread.submit(self._run, pickle.loads(task)).result() for task in batch["task"]]
        }

    def _run(self, items: Sequence[Any]) -> str:
        """Journal the outcomes; -> what stops the stage, if so: a fault of the machine, in words."""
        self._pool = self._pool or Pool(self._work, 1, self._limits)
        try:
            for outcome in drain(self._pool, self._work, items):
                for entry in self._work.entries(outcome):
                    self._journal.append(entry)
        except SvdError as error:
            kind = "machine" if isinstance(error, MachineError) else "wrong"
            return f"{kind}:{error.message} {error.hint}".strip()
        self._journal.sync()
        return ""

    def _live(self) -> None:
        """A sign of life, which shared folders show to the driver."""
        while True:
            try:
                self._beat.write_text(str(time.time()))
            except OSError:  # the run is over, and its scratch swept
                return
            time.sleep(_BEAT_SECONDS)


def _beats(folder: Path) -> list[tuple[str, str]]:
    return sorted((path.name, path.read_text()) for path in (folder / SCRATCH).glob("beat-*"))


# ---- before anything starts


def connect(address: str | None) -> Any:
    """Ray, begun on this machine or reached at an address. Raises MachineError."""
    for name, value in (("RAY_DEDUP_LOGS", "1"), ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")):
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MachineError(
            "--engine ray needs Ray, which is not installed.", "pip install 'svdcli[ray]'"
        ) from error
    if ray.is_initialized():
        return ray
    try:
        if address is None:
            os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # it listens on this machine alone
            paths = os.pathsep.join(path for path in sys.path if path)
            ray.init(
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": {"PYTHONPATH": paths}},
            )
        else:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        where = f"at {address}" if address else "on this machine"
        raise MachineError(f"Ray cannot be begun {where}: {error}.", "Check it with: ray status") from error
    ray.data.DataContext.get_current().enable_progress_bars = False
    return ray


def preflight(
    nodes: Sequence[Mapping[str, float]], free: Mapping[str, float], wanted: int | None, gpus: float = 0.0
) -> int:
    """How many actors to begin, one CPU and so many GPUs each. Raises MachineError where Ray would wait for ever.

    `nodes`: resources of each; `free`: of all, less what others hold.
    """
    fit = sum(int(node.get("CPU", 0)) for node in nodes)
    if gpus:
        fit = sum(min(int(node.get("CPU", 0)), int(node.get("GPU", 0) // gpus)) for node in nodes)
    spare = min(fit, int(free.get("CPU", 0)), *([int(free.get("GPU", 0) // gpus)] if gpus else []))
    size = spare if wanted is None else wanted
    if size < 1 or size > spare:
        raise MachineError(
            f"{size or 1} workers need {size or 1} free CPUs{' and GPUs' if gpus else ''}, and Ray has {spare} for them: "
            "it would wait for ever.",
            f"Ask for --workers {spare} or fewer." if spare else "Wait for what runs there, or add nodes.",
        )
    return size


def _check_nodes(ray: Any, folder: Path) -> None:
    """Every node must see the curation folder and run the same svd. Raises MachineError."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    (folder / SCRATCH).mkdir(parents=True, exist_ok=True)
    probe = folder / SCRATCH / "probe"
    probe.write_text(__version__)
    answers = {
        node["NodeManagerAddress"]: ray.remote(_see)
        .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
        .remote(str(probe))
        for node in ray.nodes()
        if node["Alive"]
    }
    for address, answer in answers.items():
        try:
            seen = ray.get(answer, timeout=120)
        except Exception as error:
            raise MachineError(
                f"The node {address} of Ray cannot run svd: {type(error).__name__}.",
                "Install svdcli on every node.",
            ) from error
        if seen != (__version__, __version__):
            what = f"has svd {seen[0]}" if seen[1] else f"does not see {folder}"
            raise MachineError(
                f"The node {address} of Ray {what}.",
                f"Every node needs svd {__version__} and the folder at that path.",
            )


def _see(probe: str) -> tuple[str, str]:
    """(version of svd here, what the probe says), on a node."""
    import svdcli

    path = Path(probe)
    return svdcli.__version__, path.read_text() if path.is_file() else ""
