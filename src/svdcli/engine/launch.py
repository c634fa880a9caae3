"""The only place that knows Fabric."""

from __future__ import annotations

import torch
from lightning_fabric import Fabric

from svdcli.errors import MachineError
from svdcli.recipe.recipe import Machine


def launch(machine: Machine) -> Fabric:
    """A launched Fabric for this machine section. Raises MachineError where the accelerator is absent."""
    if machine.num_threads:
        torch.set_num_threads(machine.num_threads)
    if machine.accelerator == "cuda" and not torch.cuda.is_available():
        raise MachineError("no CUDA device on this machine", "Set machine.accelerator to cpu, or leave it out.")
    fabric = Fabric(
        accelerator=machine.accelerator,
        devices=machine.devices,
        strategy=machine.strategy,
        precision=machine.precision,
    )
    fabric.launch()
    return fabric
