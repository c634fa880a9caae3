"""What a training run costs, on paper: arithmetic, memory, data, days. Runs nothing and reads no weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from svdcli.engine.adam import BLOCK, SMALLEST
from svdcli.engine.adapter import adapt
from svdcli.engine.cost import Cost, count
from svdcli.engine.launch import processes
from svdcli.engine.optim import HALF, freeze, is_temporal, settle_frozen
from svdcli.engine.recompute import blocks_of, recompute_blocks
from svdcli.engine.tasks.sketches import Sketch, clip_lengths, sketch
from svdcli.recipe.recipe import Recipe

UTILISATION = 0.4
"""Share of a GPU's dense peak that training sustains; 0.3 to 0.5 is usual for networks of convolutions and attention."""
ROOM = 0.92
"""Share of a GPU's memory that a run may fill: the driver, kernels and fragments take the rest."""
COUNTS = (1, 8, 384)
"""GPUs that days are given for, beside the recipe's own number."""


@dataclass(frozen=True)
class GPU:
    """A card by its data sheet."""

    name: str
    tflops: float
    """10¹² operations a second in bf16, dense, float32 sums; float32 (TF32) runs at half of that"""
    memory_gib: float


GPUS = (
    GPU("H200", 989, 131),
    GPU("H100", 989, 74.5),
    GPU("A100-80", 312, 74.5),
    GPU("A100-40", 312, 37.2),
    GPU("L40S", 362, 44.7),
    GPU("RTX 4090", 165, 24),
    GPU("RTX 3090", 71, 24),
    GPU("RTX 4080", 97, 16),
)


@dataclass(frozen=True)
class OnGPU:
    """The run on one kind of GPU."""

    name: str
    fits: bool
    days: dict[int, float]
    """by the number of GPUs, all clips of the recipe counted"""


@dataclass(frozen=True)
class TrainingPlan:
    """Numbers of parameters, operations, bytes and days."""

    parameters: dict[str, int]
    forward_flops: float
    """of a batch on one device, mean over the clip lengths"""
    step_flops: float
    """of a step over all devices: forward, backward, what is computed again, frozen parts"""
    memory: dict[str, int]
    """bytes on each device, by part, at the longest clips"""
    host_memory: dict[str, int]
    """bytes beside each device, in the host's memory"""
    bytes_read: int
    """by each device, a step, from the caches on disk"""
    num_devices: int
    num_steps: int
    clips_a_step: int
    gpus: tuple[OnGPU, ...]

    @property
    def memory_total(self) -> int:
        """Bytes on each device; an upper bound, as gradients come while activations go."""
        return sum(self.memory.values())

    def to_dict(self) -> dict[str, Any]:
        gpus = [g | {"days": {str(n): d for n, d in g["days"].items()}} for g in asdict(self)["gpus"]]
        return asdict(self) | {"gpus": gpus, "memory_total": self.memory_total, "utilisation": UTILISATION}


def plan_training(recipe: Recipe) -> TrainingPlan:
    """The plan of a recipe, for a GPU unless `machine.accelerator` is cpu."""
    run, lengths = recipe.run, clip_lengths(recipe)
    devices, nodes = processes(recipe.machine)
    costs = {length: _cost(recipe, length) for length in sorted(set(lengths))}
    forward = sum(costs[length].forward_flops for length in lengths) / len(lengths)
    step = (
        sum(costs[length].step_flops for length in lengths) / len(lengths) * run.accumulate * devices * nodes
    )
    longest = sketch(recipe, max(lengths))
    _prepare(longest, recipe)
    memory, host = memory_parts(longest.trained.network, recipe, devices * nodes)
    memory |= {
        "frozen parts": sum(_bytes(part.network) for part in longest.beside.values()),
        "activations": max(cost.activation_bytes for cost in costs.values()),
        "batch": longest.batch_bytes,
    }
    if kept := max(cost.host_bytes for cost in costs.values()):
        host["activations"] = kept
    clips = run.batch_size * run.accumulate * devices * nodes
    total = step * run.num_steps
    return TrainingPlan(
        parameters=_parameters(longest),
        forward_flops=forward,
        step_flops=step,
        memory=memory,
        host_memory=host,
        bytes_read=longest.bytes_read * run.accumulate,
        num_devices=devices * nodes,
        num_steps=run.num_steps,
        clips_a_step=clips,
        gpus=tuple(_on(gpu, total, sum(memory.values()), recipe, devices * nodes) for gpu in GPUS),
    )


def _prepare(drawn: Sketch, recipe: Recipe) -> nn.Module:
    """The trained network as `train.prepare` makes it."""
    network = drawn.trained.network
    freeze(network, recipe.optim.freeze)
    adapt(network, recipe)
    one_precision = recipe.machine.strategy in ("fsdp", "deepspeed")
    settle_frozen(network, "32-true" if one_precision else recipe.machine.precision)
    layers = recipe.machine.checkpoint == "layers"
    recompute_blocks(network, recipe.machine.checkpoint_share, layers=layers, offload=recipe.machine.offload)
    return network


def _cost(recipe: Recipe, num_frames: int) -> Cost:
    """Of a batch on one device."""
    drawn = sketch(recipe, num_frames)
    half, on_gpu = HALF.get(recipe.machine.precision), recipe.machine.accelerator != "cpu"
    before = [
        count(p.network, p.run, on_gpu=on_gpu, backward=False)
        for p in drawn.beside.values()
        if p.run is not None
    ]
    assert drawn.trained.run is not None
    trained = count(_prepare(drawn, recipe), drawn.trained.run, half, on_gpu=on_gpu)
    return Cost(
        trained.forward_flops,
        trained.step_flops + sum(cost.step_flops for cost in before),
        max(cost.activation_bytes for cost in (trained, *before)),
        trained.host_bytes,
    )


def memory_parts(
    network: nn.Module, recipe: Recipe, num_devices: int
) -> tuple[dict[str, int], dict[str, int]]:
    """What a network, prepared for training, takes before the first activation: bytes on the device, on the host."""
    optim, strategy = recipe.optim, recipe.machine.strategy
    trained = [p for p in network.parameters() if p.requires_grad]
    numbers = sum(p.numel() for p in trained)
    averages = 2 if optim.ema == "power" else 1
    sharded = num_devices if strategy == "fsdp" else 1
    gradients_shared = strategy == "deepspeed" and recipe.machine.zero_stage == 2
    moments = moment_bytes([p.numel() for p in trained], optim.state) // sharded
    if strategy == "deepspeed":  # which steps copies of its share of the weights
        moments = (moments + 4 * numbers) // num_devices
    device = {
        "weights": _bytes(network) // sharded,
        "gradients": 4 * numbers // (num_devices if gradients_shared else sharded),
        "optimizer": 0 if optim.state == "host" else moments,
        "averages": 4 * numbers * averages // sharded,
    }
    if sharded > 1:  # two blocks at a time are whole, and what lies in none
        largest = max((_bytes(block) for block in blocks_of(network)), default=0)
        device["gathered"] = min(_bytes(network), 2 * largest)
    return device, {"optimizer": moments} if optim.state == "host" else {}


def moment_bytes(sizes: list[int], state: str) -> int:
    """Of Adam's two moments for parameters of so many numbers."""
    if state != "8bit":
        return 8 * sum(sizes)
    blocks = sum(-(-size // BLOCK) for size in sizes if size >= SMALLEST)
    return blocks * 2 * (BLOCK + 4) + 8 * sum(size for size in sizes if size < SMALLEST)


def _bytes(network: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*network.parameters(), *network.buffers()))


def _parameters(drawn: Sketch) -> dict[str, int]:
    named = dict(drawn.trained.network.named_parameters())
    return {
        "total": sum(p.numel() for p in named.values()),
        "trained": sum(p.numel() for p in named.values() if p.requires_grad),
        "temporal": sum(p.numel() for name, p in named.items() if is_temporal(name)),
        "beside": sum(p.numel() for part in drawn.beside.values() for p in part.network.parameters()),
    }


def _on(gpu: GPU, flops: float, memory: int, recipe: Recipe, num_devices: int) -> OnGPU:
    half = recipe.machine.precision != "32-true"
    seconds = flops / (gpu.tflops * 1e12 * UTILISATION * (1.0 if half else 0.5))
    days = {n: seconds / 86400 / n for n in sorted({*COUNTS, num_devices})}
    return OnGPU(gpu.name, memory <= ROOM * gpu.memory_gib * 2**30, days)
