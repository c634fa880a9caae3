"""The training loop, one for every task.

Whatever is random in a step (which clips, which noise) is a pure function of (seed, step, batch of the step),
so that a resumed run needs no more than the weights, the optimizer and the step to go on bit for bit, and
two processes do what one does that accumulates two batches.
"""

from __future__ import annotations

import copy
import csv
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule

from svdcli.engine.adapter import adapt, export_adapter, keep_calibration
from svdcli.engine.compiling import compile_blocks
from svdcli.engine.ema import Averages
from svdcli.engine.interrupts import Interrupts
from svdcli.engine.launch import launch
from svdcli.engine.observe import cost, observed
from svdcli.engine.optim import build_optimizer, freeze, learning_rate, set_rate, settle_frozen
from svdcli.engine.preflight import check
from svdcli.engine.recompute import recompute_blocks
from svdcli.engine.shards import gathered
from svdcli.engine.state import CHECKPOINT, TrainState, keep_checkpoint
from svdcli.engine.tasks import Task, make_task
from svdcli.errors import MachineError
from svdcli.io.files import atomic_path, remove_unfinished
from svdcli.io.lock import lock_run
from svdcli.recipe.recipe import Recipe

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
    with ExitStack() as stack:
        interrupts = stack.enter_context(Interrupts())
        fabric = launch(recipe.machine, recipe.optim.state == "host")
        first = fabric.global_rank == 0
        if first:
            stack.enter_context(lock_run(folder))
        task, network, state = prepare(fabric, recipe)
        recipe_text = recipe.model_dump_json(indent=1)
        if first:
            write_recipe(folder, recipe_text)
            rewind_log(folder, state.step)
            for sentence in task.notes():
                say(sentence)
            for sentence in getattr(task, "warnings", list)():
                warn(sentence)
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
        save(fabric, state, recipe)
        average = state.whole_average()
        fabric.barrier()  # a process that ends early takes the others with it
        interrupts.defer = False
        if not first:
            return state
        if interrupts.wished and stopped:
            done = f"Step {state.step} of {recipe.run.num_steps} is saved in {folder / CHECKPOINT}"
            say(f"{done}; run the same command again to go on from there.")
            raise KeyboardInterrupt
        if recipe.adapter is not None:
            export_adapter(average, folder, recipe)
        else:
            task.export(average, folder, recipe_text)
    return state


def prepare(fabric: Fabric, recipe: Recipe) -> tuple[Task, _FabricModule, TrainState]:
    """-> the task, its network as Fabric wraps it, and the state, from the checkpoint if there is one."""
    run, optim, machine = recipe.run, recipe.optim, recipe.machine
    if fabric.global_rank == 0:
        remove_unfinished(run.folder)
    torch.manual_seed(run.seed)
    with fabric.rank_zero_first():  # who fills the caches
        task = make_task(recipe, fabric.device, run.folder.parent / "cache")
    freeze(task.network, optim.freeze)
    adapt(task.network, recipe)
    keep_calibration(task, recipe)
    sharded, zero = machine.strategy == "fsdp", machine.strategy == "deepspeed"
    one_precision = sharded or zero  # sharing out wants it, and plain memory
    settle_frozen(task.network, "32-true" if one_precision else machine.precision)
    if not one_precision:
        channels_last(task.network)
    layers = machine.checkpoint == "layers"
    recompute_blocks(task.network, machine.checkpoint_share, layers=layers, offload=machine.offload)
    averages = Averages(task.network, optim)  # before it is shared out
    averages.module.to(fabric.device)
    if machine.compile:
        compile_blocks(task.network)
    if zero:  # which sees to it where the optimizer's state lives
        whole = optim.model_copy(update={"state": "full"})
        network, optimizer = fabric.setup(task.network, build_optimizer(task.network, whole))
    else:
        network = fabric.setup_module(task.network)
        optimizer = fabric.setup_optimizers(build_optimizer(task.network, optim))
    plain = copy.deepcopy(averages.module).cpu() if sharded and fabric.global_rank == 0 else None
    if sharded:
        fabric.setup_module(averages.module)
    scaler = getattr(fabric.strategy.precision, "scaler", None)
    state = TrainState(task.network, averages, optimizer, scaler, plain=plain)
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
    run, first = recipe.run, fabric.global_rank == 0
    while state.step < run.num_steps:
        if agreed(fabric, stop()):
            return True
        figures = train_step(fabric, task, network, state, recipe)
        figures |= cost(fabric, run, figures["seconds"])
        last = state.step == run.num_steps
        if recipe.optim.ema == "power" and (last or state.step % recipe.optim.ema_snapshot_every == 0):
            state.averages.snapshot(run.folder, state.step, write=first)
        if (last or state.step % run.evaluate_every == 0) and (first or state.sharded):
            figures |= task.evaluate(state.average)
        if first:
            log(run.folder, state.step, figures)
            report(state.step, figures)
        if state.step % run.checkpoint_every == 0:
            save(fabric, state, recipe)
    return False


def save(fabric: Fabric, state: TrainState, recipe: Recipe) -> None:
    """The checkpoint, written by the first process, and those before it as `run.keep` says."""
    run, first = recipe.run, fabric.global_rank == 0
    if first or state.shares:
        state.save(run.folder, recipe.model_dump_json(indent=1), write=first)
    if first:
        keep_checkpoint(run.folder, state.step, run.keep, run.keep_every)


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
    set_rate(state.optimizer, rate)
    total = 0.0
    for part in range(run.accumulate):
        seed, generator = step_seed(run.seed, state.step, fabric.global_rank * run.accumulate + part)
        torch.manual_seed(generator.initial_seed())  # of what layers draw themselves, such as dropout
        with fabric.no_backward_sync(network, enabled=part < run.accumulate - 1):
            loss, figures = task.loss(network, task.batch(seed), generator)
            fabric.backward(loss / run.accumulate)
        total += loss.item() / run.accumulate
    norm = fabric.clip_gradients(network, state.optimizer, max_norm=optim.clip_norm, error_if_nonfinite=False)
    assert norm is not None
    norm = gathered(norm)
    if not torch.isfinite(norm) and not _is_overflow(state):
        what = "gradient" if math.isfinite(total) else "loss"
        raise MachineError(
            f"The {what} of step {state.step} is not finite.",
            f"The last checkpoint in {run.folder} is good: lower optim.lr and run the same command again.",
        )
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    state.averages.update(state.network, state.step)
    seconds = time.monotonic() - started
    return {"loss": total, "grad_norm": norm.item(), "lr": rate, "seconds": seconds} | figures


def step_seed(seed: int, step: int, part: int) -> tuple[list[int], torch.Generator]:
    """What all randomness of a batch comes from: its choice of clips, and its noise."""
    seeds = [seed, step, part, 0]
    return seeds, torch.Generator().manual_seed(int(np.random.SeedSequence(seeds).generate_state(1)[0]))


def _is_overflow(state: TrainState) -> bool:
    """In 16-mixed precision gradients overflow now and then: the scaler skips that update and scales down."""
    return state.scaler is not None and state.scaler.get_scale() > LEAST_SCALE


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
