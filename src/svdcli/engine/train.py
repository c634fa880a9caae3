"""The training loop, one for every task.

Whatever is random in a step (which clips, which noise) is a pure function of (seed, step, batch of the step),
so that a resumed run needs no more than the weights, the optimizer and the step to go on bit for bit, and
two processes do what one does that accumulates two batches.
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule

from svdcli.engine.interrupts import Interrupts
from svdcli.engine.launch import launch
from svdcli.engine.observe import cost, observed
from svdcli.engine.preflight import check
from svdcli.engine.state import CHECKPOINT, TrainState
from svdcli.engine.tasks import Task, make_task
from svdcli.errors import MachineError
from svdcli.io.files import atomic_path
from svdcli.recipe.recipe import Optim, Recipe

Report = Callable[[int, dict[str, float]], None]
Say = Callable[[str], None]
METRICS, RECIPE = "metrics.csv", "recipe.json"
LEAST_SCALE = 2.0**-6
"""A loss scale of 16-mixed precision below which the gradients, not the scale, are at fault."""


def train(
    recipe: Recipe, report: Report, say: Say = lambda text: None, warn: Say = lambda text: None
) -> TrainState:
    """Train, or go on training, as the recipe says; the result is exported to the run's folder.

    `report(step, figures)`, `say(sentence)` and `warn(sentence)` are called in the first process only. Returns early after
    `run.minutes`. SIGINT and SIGTERM are obeyed after the step that runs, with a checkpoint, by
    KeyboardInterrupt. Any other error leaves the last checkpoint as it is. Raises SvdError for what the user
    can mend, before anything starts where that can be known.
    """
    recipe = check(recipe).recipe
    folder = recipe.run.folder
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * (recipe.run.minutes or math.inf)
    with Interrupts() as interrupts:
        fabric = launch(recipe.machine)
        first = fabric.global_rank == 0
        task, network, state = prepare(fabric, recipe)
        recipe_text = recipe.model_dump_json(indent=1)
        if first:
            write_recipe(folder, recipe_text)
            rewind_log(folder, state.step)
            for sentence in task.notes():
                say(sentence)
        interrupts.defer = True
        with observed(fabric, recipe, task, state, report, warn) as seen:
            stopped = fit(
                fabric,
                task,
                network,
                state,
                recipe,
                seen,
                lambda: interrupts.wished or time.monotonic() > deadline,
            )
        if first:
            state.save(folder, recipe_text)
        fabric.barrier()  # a process that ends early takes the others with it
        interrupts.defer = False
        if not first:
            return state
        if interrupts.wished and stopped:
            done = f"Step {state.step} of {recipe.run.num_steps} is saved in {folder / CHECKPOINT}"
            say(f"{done}; run the same command again to go on from there.")
            raise KeyboardInterrupt
        task.export(state.average, folder, recipe_text)
    return state


def prepare(fabric: Fabric, recipe: Recipe) -> tuple[Task, _FabricModule, TrainState]:
    """-> the task, its network as Fabric wraps it, and the state, from the checkpoint if there is one."""
    run, optim = recipe.run, recipe.optim
    torch.manual_seed(run.seed)
    with fabric.rank_zero_first():  # who fills the caches
        task = make_task(recipe, fabric.device, run.folder.parent / "cache")
    channels_last(task.network)
    trained = [p for p in task.network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay)
    network, optimizer = fabric.setup(task.network, optimizer)
    state = TrainState.start(task.network, optimizer, getattr(fabric.strategy.precision, "scaler", None))
    if (run.folder / CHECKPOINT).exists():
        state.load(run.folder)
    return task, network, state


def fit(
    fabric: Fabric,
    task: Task,
    network: _FabricModule,
    state: TrainState,
    recipe: Recipe,
    report: Report,
    stop: Callable[[], bool],
) -> bool:
    """Steps up to the recipe's last, logged, evaluated, saved. True where `stop()` ended them before."""
    run = recipe.run
    while state.step < run.num_steps:
        if agreed(fabric, stop()):
            return True
        figures = train_step(fabric, task, network, state, recipe)
        if fabric.global_rank > 0:
            continue
        figures |= cost(fabric, run, figures["seconds"])
        if state.step % run.evaluate_every == 0 or state.step == run.num_steps:
            figures |= task.evaluate(state.average)
        log(run.folder, state.step, figures)
        report(state.step, figures)
        if state.step % run.checkpoint_every == 0:
            state.save(run.folder, recipe.model_dump_json(indent=1))
    return False


def agreed(fabric: Fabric, stop: bool) -> bool:
    """Whether any process wants to stop: all must, and at the same step."""
    if fabric.world_size == 1:
        return stop
    votes = fabric.all_reduce(torch.tensor(float(stop), device=fabric.device), reduce_op="sum")
    return bool(votes.sum() > 0)  # type: ignore[union-attr]


def train_step(
    fabric: Fabric, task: Task, network: _FabricModule, state: TrainState, recipe: Recipe
) -> dict[str, float]:
    """One step: `accumulate` batches, one clipped update, one update of the average."""
    started, run, optim = time.monotonic(), recipe.run, recipe.optim
    rate = learning_rate(optim, state.step, run.num_steps)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    total = 0.0
    for part in range(run.accumulate):
        seed, generator = step_seed(run.seed, state.step, fabric.global_rank * run.accumulate + part)
        with fabric.no_backward_sync(network, enabled=part < run.accumulate - 1):
            loss, figures = task.loss(network, task.batch(seed), generator)
            fabric.backward(loss / run.accumulate)
        total += loss.item() / run.accumulate
    norm = fabric.clip_gradients(network, state.optimizer, max_norm=optim.clip_norm, error_if_nonfinite=False)
    assert norm is not None
    if not torch.isfinite(norm) and not _is_overflow(state):
        raise MachineError(
            f"The gradient of step {state.step} is not finite.",
            f"The last checkpoint in {run.folder} is good: lower optim.lr and run the same command again.",
        )
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    state.update_average(optim.ema_decay)
    seconds = time.monotonic() - started
    return {"loss": total, "grad_norm": norm.item(), "lr": rate, "seconds": seconds} | figures


def step_seed(seed: int, step: int, part: int) -> tuple[list[int], torch.Generator]:
    """What all randomness of a batch comes from: its choice of clips, and its noise."""
    seeds = [seed, step, part, 0]
    return seeds, torch.Generator().manual_seed(int(np.random.SeedSequence(seeds).generate_state(1)[0]))


def _is_overflow(state: TrainState) -> bool:
    """In 16-mixed precision gradients overflow now and then: the scaler skips that update and scales down."""
    return state.scaler is not None and state.scaler.get_scale() > LEAST_SCALE


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


# ---- the run folder's small files ----------------------------------------------------------------------


def write_recipe(folder: Path, text: str) -> None:
    """The resolved recipe, for people; the checkpoint carries its own."""
    with atomic_path(folder / RECIPE) as temporary:
        temporary.write_text(text + "\n")


def log(folder: Path, step: int, figures: dict[str, float]) -> None:
    """Append a row a figure to metrics.csv: step, name, value."""
    with open(folder / METRICS, "a", newline="") as file:
        csv.writer(file).writerows([step, name, f"{value:.6g}"] for name, value in figures.items())


def rewind_log(folder: Path, step: int) -> None:
    """Take out the rows behind `step`, which a killed run logged but did not save, and that come again."""
    path = folder / METRICS
    if not path.exists():
        return
    with open(path, newline="") as file:
        rows = [row for row in csv.reader(file) if len(row) == 3 and row[0].isdigit() and int(row[0]) <= step]
    with atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
        csv.writer(file).writerows(rows)
