"""`svd train`: a recipe in, a run folder out; the same command again resumes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from svdcli.cli.console import out
from svdcli.cli.recipes import find_recipe
from svdcli.errors import UsageError

if TYPE_CHECKING:
    from svdcli.engine.preflight import Start
    from svdcli.recipe.recipe import Recipe


def register(app: typer.Typer) -> None:
    app.command()(train)


def train(
    recipe: Annotated[
        str,
        typer.Argument(
            help="A TOML recipe, the name of a shipped one (svd recipes list), or the folder of a run."
        ),
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe: --set optim.lr=1e-5"),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(help="Save and stop after this long; the same command goes on. (run.minutes)"),
    ] = None,
    show_batch: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT.png", help="Draw what the network is fed, with its ids, and train nothing."
        ),
    ] = None,
    show_step: Annotated[int, typer.Option(min=0, help="The step that --show-batch draws.")] = 0,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what it would cost: memory, arithmetic, days. Trains nothing.")
    ] = False,
    report: Annotated[
        bool,
        typer.Option("--report", help="Train nothing; write the run so far as one page, RUN/report.html."),
    ] = False,
) -> None:
    """Train a model as a recipe says. The same command again resumes it where it stopped."""
    from svdcli.recipe.recipe import load_recipe

    found, command = find_recipe(recipe), f"svd train {recipe}"
    if report and found.run:
        return write_page(found.run, command)
    chosen = load_recipe(found.path, changed(set_, minutes))
    act(chosen, command, Wish(show_batch, show_step, plan, report), f"recipe: {found}")


@dataclass(frozen=True)
class Wish:
    """What else than training a command may be asked for."""

    show_batch: Path | None = None
    show_step: int = 0
    plan: bool = False
    report: bool = False
    push_to_hub: str | None = None
    private: bool = False


def changed(set_: list[str] | None, minutes: float | None) -> list[str]:
    """The changes of the recipe that the options ask for."""
    return [*(set_ or []), *([] if minutes is None else [f"run.minutes={minutes}"])]


def act(recipe: Recipe, command: str, wish: Wish, told: str) -> None:
    """Train by a recipe, or do what is wished with it.

    `command` is what the user typed, to be typed again; `told` says, once all is checked, by what it trains.
    """
    if wish.report:
        write_page(recipe.run.folder, command)
    elif wish.show_batch is not None:
        _show(recipe, wish.show_batch, wish.show_step)
    elif wish.plan:
        _plan(recipe, command)
    else:
        _train(recipe, command, told, wish)


def _train(recipe: Recipe, command: str, told: str, wish: Wish) -> None:
    from svdcli.engine.launch import is_first
    from svdcli.engine.preflight import check
    from svdcli.engine.publish import push, require_access
    from svdcli.engine.state import CHECKPOINT

    start = check(recipe)
    if wish.push_to_hub is not None:
        require_access(wish.push_to_hub)
    out.say(told)
    _introduce(start)
    step, figures = _run(start)

    run = start.recipe.run
    done = step >= run.num_steps
    facts = {
        "folder": run.folder,
        "checkpoint": run.folder / CHECKPOINT,
        "result": _result(start.recipe),
        "step": step,
        "num_steps": run.num_steps,
        "done": done,
        "figures": figures,
    }
    told = ", ".join(f"{name} {value:.4g}" for name, value in figures.items() if name.startswith("held_out"))
    lines = [
        f"step {step} of {run.num_steps}{': ' + told if told else ''}",
        f"result: {_result(start.recipe)}",
    ]
    if done and wish.push_to_hub is not None and is_first():
        published = push(start.recipe, wish.push_to_hub, wish.private, start.num_videos, start.num_held_out)
        facts["published"], lines = published, [*lines, f"published: {published}"]
    out.result(facts, lines)
    out.next(_next(start.recipe) if done else f"{command}   (the same command, for the other steps)")


def _plan(chosen: Recipe, command: str) -> None:
    """The cost on paper."""
    from svdcli.cli.plan_table import plan_lines
    from svdcli.engine.plan_training import plan_training

    found = plan_training(chosen)
    out.result(found.to_dict() | {"recipe": command.split()[-1]}, plan_lines(found, chosen))
    out.next(command)


def _show(recipe: Recipe, file: Path, step: int) -> None:
    from svdcli.engine.preflight import check
    from svdcli.engine.show import show_batch

    if file.suffix.lower() != ".png":
        raise UsageError(f"--show-batch draws a png, and {file} is none.", "Give a name that ends in .png.")
    rows = show_batch(check(recipe).recipe, step, file)
    out.result({"file": file, "step": step, "clips": [row.title for row in rows]}, [str(file)])


def write_page(folder: Path, command: str) -> None:
    """Write the page on the run in `folder`."""
    from svdcli.engine.report import write_report

    facts = write_report(folder)
    step, num_steps = facts["step"], facts["num_steps"]
    lines = [str(facts["report"]), f"step {step} of {num_steps}, {facts['num_samples']} sets of samples"]
    out.result(facts, lines)
    if step < num_steps:
        out.next(f"{command}   (the steps that are left)")


def _introduce(start: Start) -> None:
    """What is about to happen, and what is different from the time before."""
    run = start.recipe.run
    for change in start.changes:
        out.warn(change)
    begun = f"resuming at step {start.step}" if start.step else "beginning"
    out.say(f"{begun}: {run.num_steps} steps, {start.num_videos} videos, {start.num_held_out} held out")
    out.say(
        f"checkpoints and metrics: {run.folder}, every {run.checkpoint_every} steps; Ctrl-C saves and stops"
    )


def _run(start: Start) -> tuple[int, dict[str, float]]:
    """Train; -> the last step and its figures, held-out measures those of the last evaluation."""
    from svdcli.engine.train import train as run_training

    figures: dict[str, float] = {}
    with out.progress("training", total=max(0, start.recipe.run.num_steps - start.step)) as bar:

        def report(step: int, new: dict[str, float]) -> None:
            figures.update(new)
            rate = 1.0 / max(new["seconds"], 1e-9)
            bar.advance(1, note=f"step {step}, loss {new['loss']:.4f}, {rate:.3g} steps/s")

        state = run_training(start.recipe, report, out.say, out.warn)
    return state.step, figures


def _result(recipe: Recipe) -> Path:
    if recipe.adapter is not None:
        return recipe.run.folder / "lora.safetensors"
    return recipe.run.folder / ("vae" if recipe.task.kind == "vae" else "bundle")


def _next(recipe: Recipe) -> str:
    from svdcli.engine.card import SAMPLED

    if recipe.task.kind == "vae":
        return f"svd train RECIPE --set task.vae={recipe.run.folder}   (an i2v recipe, upon this autoencoder)"
    words = SAMPLED[recipe.task.kind]
    if recipe.adapter is not None:
        return f"svd sample {words} --lora {_result(recipe)} --bundle {getattr(recipe.task, 'start', None)}"
    if recipe.task.kind in ("t2i", "t2v"):
        following = "t2v" if recipe.task.kind == "t2i" else "t2v or i2v"
        return (
            f"svd train RECIPE --set task.start={_result(recipe)}   (a {following} recipe, upon this model)"
        )
    return f"svd sample {words} --bundle {_result(recipe)}"
