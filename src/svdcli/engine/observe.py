"""A run as it is watched: its figures go to the loggers, its samples to files, what it ran on to run.json.

It hangs on the loop by one thread, the report after each step, and changes nothing there: it draws no random
number of the training's, and whatever it fails to write is said once and otherwise let be.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch
from lightning_fabric import Fabric
from torch import nn

from svdcli.engine.generate import is_out_of_memory
from svdcli.engine.loggers import SampleLogger, finite, make_loggers
from svdcli.engine.samples import Samples, lay_out, write_samples
from svdcli.engine.state import TrainState
from svdcli.engine.tasks import Task
from svdcli.errors import SvdError
from svdcli.io.files import atomic_path
from svdcli.io.manifest import versions
from svdcli.recipe.recipe import Recipe, Run

SESSIONS = "run.json"
Report = Callable[[int, dict[str, float]], None]
Warn = Callable[[str], None]


@contextmanager
def observed(
    fabric: Fabric, recipe: Recipe, task: Task, state: TrainState, report: Report, warn: Warn
) -> Iterator[Report]:
    """`report` with all that a run shows of itself behind it; the loggers are closed when the block ends.

    In the first process only; in the others, `report` as it is. Raises MachineError where a logger cannot
    be started.
    """
    if fabric.global_rank > 0:
        yield report
        return
    folder = recipe.run.folder
    add_session(folder, state.step, task.notes(), fabric)
    loggers = make_loggers(recipe.run.log, folder, state.step, recipe.model_dump(mode="json"))
    observer = Observer(fabric, recipe, task, state, loggers, warn)

    def both(step: int, figures: dict[str, float]) -> None:
        report(step, figures)
        observer.see(step, figures)

    status = "aborted"
    try:
        yield both
        status = "success"
    finally:
        observer.close(status)


class Observer:
    """Passes figures on, and makes samples where they are due."""

    def __init__(
        self, fabric: Fabric, recipe: Recipe, task: Task, state: TrainState, loggers: list[SampleLogger],
        warn: Warn,
    ) -> None:  # fmt: skip
        self.fabric, self.run, self.task, self.state = fabric, recipe.run, task, state
        self.loggers, self._warn, self._warned = loggers, warn, set[str]()
        self.samples = self.run.sample_every is not None and self._can_sample()

    def _can_sample(self) -> bool:
        if self.state.sharded:
            self._warn("run.sample_every makes no samples: the weights are spread over the devices.")
            return False
        if not isinstance(self.task, Samples):
            self._warn("run.sample_every makes no samples: this kind of task has none.")
            return False
        return True

    def see(self, step: int, figures: dict[str, float]) -> None:
        """After a step: log it, and sample where that is due."""
        tagged = {tag(name): value for name, value in finite(figures).items()}
        for logger in list(self.loggers):
            self._tell(logger, lambda logger=logger: logger.log_metrics(tagged, step))  # type: ignore[misc]
        every = self.run.sample_every
        if self.samples and every and (step % every == 0 or step == self.run.num_steps):
            try:
                self._sample(step)
            except (SvdError, OSError, RuntimeError, MemoryError) as error:
                if isinstance(error, RuntimeError | MemoryError) and not is_out_of_memory(error):
                    raise
                self._warn_once("samples", f"The samples of step {step} could not be made", error)

    def _sample(self, step: int) -> None:
        assert isinstance(self.task, Samples)
        device = self.fabric.device
        networks = {"average": self.state.average, "raw": self.state.network}
        with torch.random.fork_rng([device] if device.type == "cuda" else []), evaluating(self.state.network):
            with self.fabric.autocast():
                samples = self.task.sample(networks)
        sheet = lay_out(samples)
        video = write_samples(sheet, self.run.folder, step)
        for logger in list(self.loggers):
            self._tell(logger, lambda: logger.log_samples(sheet.picture, sheet.gif(), video, step))  # noqa: B023

    def close(self, status: str) -> None:
        """Flush the loggers; `status` is success or aborted."""
        for logger in list(self.loggers):
            self._tell(logger, lambda: logger.finalize(status))  # noqa: B023

    def _tell(self, logger: SampleLogger, act: Callable[[], None]) -> None:
        """A logger that fails is left out from then on: metrics.csv has it all."""
        try:
            act()
        except (
            Exception
        ) as error:  # of packages that raise classes of their own; a dashboard must not end a run
            self.loggers.remove(logger)
            self._warn_once(type(logger).__name__, f"{type(logger).__name__} fails and is left out", error)

    def _warn_once(self, kind: str, what: str, error: BaseException) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            reason = " ".join(str(error).split()).rstrip(".")
            self._warn(f"{what}: {reason}. Training goes on; this is said once.")


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """The network in evaluation mode for the length of the block, then each part in the mode it was in."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def tag(name: str) -> str:
    """The name of a figure, grouped as dashboards show it: held_out/loss_0.7, train/grad_norm."""
    return name.replace("held_out_", "held_out/", 1) if name.startswith("held_out_") else f"train/{name}"


def cost(fabric: Fabric, run: Run, seconds: float) -> dict[str, float]:
    """Examples a second over all devices, and memory in GiB: the peak on a GPU, what is held on a CPU."""
    if fabric.device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(fabric.device)
    else:
        memory = psutil.Process().memory_info().rss
    examples = run.batch_size * run.accumulate * fabric.world_size
    return {"examples_per_second": examples / max(seconds, 1e-9), "memory_gib": memory / 2**30}


# ---- run.json ------------------------------------------------------------------------------------------


def add_session(folder: Path, step: int, notes: list[str], fabric: Fabric) -> None:
    """Note in run.json that training goes on from `step`, when, where and with what."""
    session = {
        "step": step,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "folder": str(Path.cwd()),
        "device": _device_name(fabric.device),
        "devices": fabric.world_size,
        "notes": notes,
        "versions": versions(),
    }
    with atomic_path(folder / SESSIONS) as temporary:
        temporary.write_text(json.dumps([*sessions(folder), session], indent=1) + "\n", encoding="utf-8")


def sessions(folder: Path) -> list[dict[str, Any]]:
    """What run.json holds, oldest first; empty where it is missing or damaged, as nothing depends on it."""
    try:
        found = json.loads((folder / SESSIONS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
