"""The training loop, one for every task.

Whatever is random in a step (which clips, which noise) is a pure function of (seed, step, rank), so that a resumed run needs no
more than the weights, the optimizer and the step to go on bit for bit.
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from svdcli.engine.launch import launch
from svdcli.engine.state import CHECKPOINT, TrainState
from svdcli.engine.tasks import make_task
from svdcli.errors import MachineError
from svdcli.io.files import atomic_path
from svdcli.recipe.recipe import Optim, Recipe

Report = Callable[[int, dict[str, float]], None]


def train(recipe: Recipe, report: Report) -> TrainState:
    """Train, or go on training, as the recipe says; the result is exported to the run's folder.

    `report(step, figures)` is called in the first process only. Returns early, with a checkpoint, after `run.minutes` and on
    KeyboardInterrupt, which it raises again. Raises SvdError for what the user can mend.
    """
    folder, run = recipe.run.folder, recipe.run
    folder.mkdir(parents=True, exist_ok=True)
    fabric = launch(recipe.machine)
    torch.manual_seed(run.seed)
    task = make_task(recipe, fabric.device, folder.parent / "cache")
    channels_last(task.network)
    trained = [p for p in task.network.parameters() if p.requires_grad]
    optim = recipe.optim
    optimizer = torch.optim.AdamW(trained, lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay)
    network, optimizer = fabric.setup(task.network, optimizer)
    state = TrainState.start(task.network, optimizer)
    if (folder / CHECKPOINT).exists():
        state.load(folder)
    recipe_text = recipe.model_dump_json(indent=1)
    deadline = time.monotonic() + 60 * (run.minutes or math.inf)
    try:
        while state.step < run.num_steps and time.monotonic() < deadline:
            figures = train_step(fabric, task, network, state, recipe)
            if fabric.global_rank > 0:
                continue
            if state.step % run.evaluate_every == 0 or state.step == run.num_steps:
                figures |= task.evaluate(state.average)
            log(folder, state.step, figures)
            report(state.step, figures)
            if state.step % run.checkpoint_every == 0:
                state.save(folder, recipe_text)
    finally:
        if fabric.global_rank == 0:
            state.save(folder, recipe_text)
    if fabric.global_rank == 0:
        task.export(state.average, folder)
        with atomic_path(folder / "recipe.json") as temporary:
            temporary.write_text(recipe_text)
    return state


def train_step(fabric, task, network, state: TrainState, recipe: Recipe) -> dict[str, float]:
    """One step: `accumulate` batches, one clipped update, one update of the average."""
    started, run, optim = time.monotonic(), recipe.run, recipe.optim
    rate = learning_rate(optim, state.step, run.num_steps)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    for part in range(run.accumulate):
        seed = [run.seed, state.step, fabric.global_rank, part]
        generator = torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        with fabric.no_backward_sync(network, enabled=part < run.accumulate - 1):
            loss, figures = task.loss(network, task.batch(seed), generator)
            fabric.backward(loss / run.accumulate)
    norm = fabric.clip_gradients(network, state.optimizer, max_norm=optim.clip_norm, error_if_nonfinite=False)
    if not torch.isfinite(norm):
        raise MachineError(
            f"the gradient of step {state.step} is not finite", "The last checkpoint is good. Lower optim.lr and resume."
        )
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    state.update_average(optim.ema_decay)
    seconds = time.monotonic() - started
    return {"loss": loss.item(), "grad_norm": norm.item(), "lr": rate, "seconds": seconds} | figures


def learning_rate(optim: Optim, step: int, num_steps: int) -> float:
    """Linear warm-up to `lr`, then a cosine to `final_lr` at the last step."""
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    progress = (step - optim.warmup_steps) / max(1, num_steps - optim.warmup_steps)
    return optim.final_lr + 0.5 * (optim.lr - optim.final_lr) * (1 + math.cos(math.pi * progress))


def channels_last(network: torch.nn.Module) -> None:
    """2D convolution weights into channels-last memory, as the activations are."""
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def log(folder: Path, step: int, figures: dict[str, float]) -> None:
    """Append a row a figure to metrics.csv: step, name, value."""
    with open(folder / "metrics.csv", "a", newline="") as file:
        csv.writer(file).writerows([step, name, f"{value:.6g}"] for name, value in figures.items())
