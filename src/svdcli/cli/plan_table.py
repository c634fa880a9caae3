"""`svd train --plan` for a person: what a run costs, as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from svdcli.cli.console import human_size, table

if TYPE_CHECKING:
    from svdcli.engine.plan_training import TrainingPlan
    from svdcli.recipe.recipe import Recipe


def plan_lines(plan: TrainingPlan, recipe: Recipe) -> list[str]:
    """Lines for the console."""
    from svdcli.engine.plan_training import UTILISATION

    run, machine = recipe.run, recipe.machine
    parts = [(name, f"{number:,}") for name, number in plan.parameters.items()]
    memory = [(name, human_size(size)) for name, size in plan.memory.items() if size]
    memory.append(("all of it", human_size(plan.memory_total)))
    memory += [(f"{name}, on the host", human_size(size)) for name, size in plan.host_memory.items()]
    work = [
        ("forward, a batch", operations(plan.forward_flops)),
        ("a step, all devices", operations(plan.step_flops)),
        ("the run", operations(plan.step_flops * plan.num_steps)),
        ("clips", f"{plan.clips_a_step * plan.num_steps:,}"),
        ("read, a step and device", human_size(plan.bytes_read)),
    ]
    return [
        f"{run.num_steps:,} steps of {plan.clips_a_step} clips on {plan.num_devices} devices, {machine.precision}",
        "",
        *table(parts, ("parameters", "")),
        "",
        *table(work, ("work", "")),
        "",
        *table(memory, ("memory of a device, at most", "")),
        "",
        *_gpu_table(plan),
        f"at {UTILISATION:.0%} of the dense peak in {_arithmetic(machine.precision)}, which is an assumption",
    ]


def _gpu_table(plan: TrainingPlan) -> list[str]:
    counts = list(plan.gpus[0].days)
    header = ["GPU", "fits", *(f"days on {n}" for n in counts)]
    return table(
        [[g.name, "yes" if g.fits else "no", *(f"{g.days[n]:.3g}" for n in counts)] for g in plan.gpus],
        header,
    )


def operations(flops: float) -> str:
    """Operations as a person reads them: 79.9 TFLOP."""
    for power, unit in enumerate(("MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP"), start=2):
        if flops < 1000 ** (power + 1):
            return f"{flops / 1000**power:.3g} {unit}"
    return f"{flops / 1e21:.3g} ZFLOP"


def _arithmetic(precision: str) -> str:
    return "TF32" if precision == "32-true" else "half precision"
