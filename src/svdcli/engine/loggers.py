"""Where figures and samples go beside metrics.csv: TensorBoard and Weights & Biases, as Fabric loggers."""

from __future__ import annotations

import importlib.util
import json
import math
import secrets
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from lightning_fabric.loggers import Logger, TensorBoardLogger

from svdcli.errors import MachineError
from svdcli.io.files import atomic_path

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb"}
"""logger -> the package that it needs"""
WANDB_ID = "wandb.json"


class SampleLogger(Protocol):
    """A logger of ours: figures as any Fabric logger, and samples."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None: ...
    def log_samples(self, sheet: npt.NDArray[np.uint8], gif: bytes, video: Path, step: int) -> None:
        """A contact sheet (H, W, 3), the same clips as a GIF, and the mp4 on disk."""

    def finalize(self, status: str) -> None: ...


def require_loggers(names: Sequence[str]) -> None:
    """Raise MachineError where a logger's package is not installed."""
    for name in names:
        package = PACKAGES.get(name)
        if package is not None and not _is_installed(package):
            raise MachineError(
                f"run.log asks for {name}, and its package is not installed.",
                f"Install it with: pip install {package}; or take {name} out of run.log.",
            )


def make_loggers(
    names: Sequence[str], folder: Path, step: int, config: Mapping[str, Any]
) -> list[SampleLogger]:
    """The loggers of a run that goes on from `step`; what an earlier process logged behind it is taken out.

    csv is not among them: it is the run's own record. Raises MachineError where one cannot be started.
    """
    loggers: list[SampleLogger] = []
    if "tensorboard" in names:
        loggers.append(TensorBoard(folder, step))
    if "wandb" in names:
        loggers.append(WandB(folder, config))
    return loggers


class TensorBoard(TensorBoardLogger):
    """Event files in RUN/tensorboard."""

    def __init__(self, folder: Path, step: int) -> None:
        super().__init__(folder, name="tensorboard", version="", purge_step=step + 1)

    def log_samples(self, sheet: npt.NDArray[np.uint8], gif: bytes, video: Path, step: int) -> None:
        """The sheet as a picture, the clips as a moving one."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        self.experiment.add_image("samples/sheet", sheet, step, dataformats="HWC")
        height, width = sheet.shape[:2]
        moving = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=gif)
        summary = Summary(value=[Summary.Value(tag="samples/clips", image=moving)])
        self.experiment._get_file_writer().add_summary(summary, step)


class WandB(Logger):
    """One W&B run for one run folder, whose id it keeps, so that a resumed run goes on in the same one.

    Steps are a metric of their own, because W&B's counter cannot go back, and a resumed run may.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        import wandb

        self._wandb = wandb
        try:
            self._run = wandb.init(
                project="svdcli", name=folder.name, id=_wandb_id(folder), dir=str(folder), resume="allow",
                config=dict(config),
            )  # fmt: skip
        except wandb.errors.Error as error:
            raise MachineError(
                f"W&B could not be started: {' '.join(str(error).split())}.",
                "Log in with `wandb login`, set WANDB_MODE=offline, or take wandb out of run.log.",
            ) from error
        self._run.define_metric("*", step_metric="step")

    @property
    def name(self) -> str:
        return "wandb"

    @property
    def version(self) -> str:
        return str(self._run.id)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        self._run.config.update(vars(params) if isinstance(params, Namespace) else params)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self._run.log({"step": step, **metrics})

    def log_samples(self, sheet: npt.NDArray[np.uint8], gif: bytes, video: Path, step: int) -> None:
        media = {"samples/sheet": self._wandb.Image(sheet), "samples/clips": self._wandb.Video(str(video))}
        self._run.log({"step": step, **media})

    def finalize(self, status: str) -> None:
        self._run.finish(exit_code=0 if status == "success" else 1)


def finite(figures: Mapping[str, float]) -> dict[str, float]:
    """Those that are numbers: a NaN would break the axes of a dashboard."""
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _wandb_id(folder: Path) -> str:
    path = folder / WANDB_ID
    if path.exists():
        return str(json.loads(path.read_text(encoding="utf-8"))["id"])
    name = secrets.token_hex(8)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps({"id": name}) + "\n", encoding="utf-8")
    return name
