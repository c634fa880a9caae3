"""The only place that knows how Fabric is set up."""

from __future__ import annotations

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy

from svdcli.errors import MachineError
from svdcli.recipe.recipe import Machine


def launch(machine: Machine) -> Fabric:
    """A launched Fabric for this machine section; every further process reruns the command.

    Raises MachineError where the devices are absent.
    """
    check_machine(machine)
    if machine.num_threads:
        torch.set_num_threads(machine.num_threads)
    many = machine.devices > 1 or machine.strategy == "ddp"
    fabric = Fabric(
        accelerator=machine.accelerator,
        devices=machine.devices,
        # A step leaves weights unused: temporal layers on images, queries beside a single context token.
        strategy=DDPStrategy(find_unused_parameters=True) if many else "auto",
        precision=machine.precision,
    )
    fabric.launch()
    return fabric


def check_machine(machine: Machine) -> None:
    """Raise MachineError unless this machine has the devices that the section asks for."""
    kind, wanted = machine.accelerator, machine.devices
    if kind == "cuda" and not torch.cuda.is_available():
        raise MachineError(
            "There is no CUDA device on this machine.", "Set machine.accelerator to cpu, or leave it out."
        )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise MachineError("There is no MPS device on this machine.", "Set machine.accelerator to cpu.")
    present = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if present and kind in ("auto", "cuda") and wanted > present:
        raise MachineError(
            f"machine.devices asks for {wanted} CUDA devices, and {present} are here.", "Ask for fewer."
        )
    if kind == "mps" and wanted > 1:
        raise MachineError("There is one MPS device, not several.", "Set machine.devices to 1.")


def spread(accelerator: str, devices: int) -> Fabric:
    """A launched Fabric of `devices` processes that share work without sharing gradients."""
    fabric = Fabric(accelerator=accelerator, devices=devices, strategy="ddp")
    fabric.launch()
    return fabric
