"""The only place that knows how Fabric is set up."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision, Precision
from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn

from svdcli.engine.compiling import require_compiler
from svdcli.engine.deepspeed import Zero, require_deepspeed
from svdcli.engine.recompute import blocks_of
from svdcli.errors import MachineError
from svdcli.recipe.recipe import Machine

M_MMAP_THRESHOLD = -3
"""of malloc.h"""
LARGE_BLOCK = 4 << 20
"""bytes"""


def launch(machine: Machine, on_host: bool = False) -> Fabric:
    """A launched Fabric for this machine section; every further process reruns the command.

    on_host: the optimizer's state lives in the host's memory, which is for DeepSpeed to know. Under torchrun the processes are
    those that it started. Raises MachineError where the devices are absent.
    """
    check_machine(machine)
    if machine.num_threads:
        torch.set_num_threads(machine.num_threads)
    devices, nodes = processes(machine)
    try:
        fabric = Fabric(
            accelerator=machine.accelerator,
            devices=devices,
            num_nodes=nodes,
            strategy=strategy(machine, on_host),
            precision=None if machine.strategy == "deepspeed" else machine.precision,
        )
    except (ValueError, RuntimeError) as error:
        raise MachineError(
            f"The processes cannot be set up: {error}", "See machine.devices and nodes."
        ) from error
    # Tasks hand their networks float32, in frozen dataclasses, into which a mixed precision cannot put it back.
    fabric.strategy.precision.convert_input = lambda data: data  # type: ignore[method-assign]
    fabric.launch()
    if fabric.device.type == "cpu":
        return_freed_memory()
    return fabric


def return_freed_memory() -> None:
    """Have the C library give large blocks back to the system when they are freed, where it is one that can.

    Else it keeps them, and what one step leaves between others is too small for the next: a fifth of a training step's memory
    was such holes. Smaller blocks would come back too, but cost more time to fetch again than they are worth.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)


def processes(machine: Machine) -> tuple[int, int]:
    """-> processes on each node, and nodes: torchrun's, where it started this one, else the recipe's."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        return local, int(os.environ["WORLD_SIZE"]) // local
    return machine.devices, machine.nodes


def is_first() -> bool:
    """Whether this process is the first of those that run the command, as far as it can know before the launch."""
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
    return next((os.environ[name] == "0" for name in names if name in os.environ), True)


def strategy(machine: Machine, on_host: bool = False) -> Any:
    """What Fabric is to run by, not yet set up."""
    devices, nodes = processes(machine)
    if machine.strategy == "deepspeed":
        on_cpu = machine.accelerator == "cpu" or not torch.cuda.is_available()
        mixed = MixedPrecision("bf16-mixed", "cpu" if on_cpu else "cuda")
        return Zero(machine.zero_stage, mixed if machine.precision == "bf16-mixed" else Precision(), on_host)
    if machine.strategy == "fsdp":
        return ModelParallelStrategy(_shard, data_parallel_size=devices * nodes, tensor_parallel_size=1)
    if machine.strategy == "ddp" or devices * nodes > 1:
        # A step leaves weights unused: temporal layers on images, queries beside a single context token.
        return DDPStrategy(find_unused_parameters=True, gradient_as_bucket_view=True)
    return "auto"


def _shard(network: nn.Module, mesh: Any) -> nn.Module:
    """Share a network out over the processes, block by block (FSDP2)."""
    from torch.distributed.fsdp import fully_shard

    for block in blocks_of(network):
        fully_shard(block, mesh=mesh["data_parallel"])
    fully_shard(network, mesh=mesh["data_parallel"])
    return network


def check_machine(machine: Machine) -> None:
    """Raise MachineError unless this machine has the devices and packages that the section asks for."""
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
    if machine.compile:
        require_compiler()
    if machine.strategy == "deepspeed":
        require_deepspeed()


def spread(accelerator: str, devices: int) -> Fabric:
    """A launched Fabric of `devices` processes that share work without sharing gradients."""
    fabric = Fabric(accelerator=accelerator, devices=devices, strategy="ddp")
    fabric.launch()
    return fabric
