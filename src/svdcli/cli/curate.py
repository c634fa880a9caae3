"""`svd curate`: raw footage in, a dataset worth training on out; the same command again goes on where it stopped."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from svdcli.cli import objects
from svdcli.cli.console import human_size, out
from svdcli.cli.curate_tables import account_lines, overlap_lines, plan_lines, shell_word, waterfall_lines
from svdcli.cli.curate_watch import watch
from svdcli.errors import InputError, UsageError

if TYPE_CHECKING:
    from svdcli.curate.select.select import Selection
    from svdcli.recipe.curation import Curation

SOURCE = Annotated[
    str,
    typer.Argument(
        metavar="SRC",
        help="A folder, a video, a pattern in quotes, a list (txt, csv, parquet), tars of WebDataset, or a URL of any.",
    ),
]
FOLDER = Annotated[
    Path, typer.Argument(metavar="OUT", help="The curation folder; the same one goes on where it stopped.")
]
RECIPE = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="NAME",
        help="A recipe, such as curate; absent: OUT's own, or the paper's defaults.",
    ),
]
CHANGES = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe: --set split.clipping=exact"),
]
WORKERS = Annotated[
    int | None, typer.Option(min=1, help="Processes, one core each; absent: one a core. (executor.workers)")
]
ENGINE = Annotated[
    str | None, typer.Option(help="pool: processes here; ray: Ray Data, here or a cluster. (executor.engine)")
]
LIMIT = Annotated[int | None, typer.Option(min=1, help="Take only so many inputs, the first of them.")]


def register(app: typer.Typer) -> None:
    group = typer.Typer(
        no_args_is_help=True, rich_markup_mode=None, help="Raw footage in, a dataset worth training on out."
    )
    for command in (run, split, annotate, filter_, pack, report, explain, study, remove):
        group.command(name=command.__name__.removesuffix("_"))(command)
    objects.register(group)
    app.add_typer(group, name="curate")


# ---- commands


def run(
    source: SOURCE,
    folder: FOLDER,
    recipe: RECIPE = None,
    set_: CHANGES = None,
    workers: WORKERS = None,
    engine: ENGINE = None,
    limit: LIMIT = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Time a sample and say what all would take; makes nothing.")
    ] = False,
    plan_clips: Annotated[
        float | None, typer.Option(min=1, help="With --plan: for a corpus of so many clips, such as 577e6.")
    ] = None,
) -> None:
    """Split, annotate, filter, pack and report. The same command again goes on where it stopped."""
    chosen = _recipe(folder, recipe, set_, workers, engine)
    if plan or plan_clips:
        _plan(source, folder, chosen, plan_clips)
        return
    from svdcli.curate.packing.pack import pack as pack_clips
    from svdcli.curate.pages.report import write_report
    from svdcli.curate.run.accounts import accounts
    from svdcli.curate.run.foresight import require_scores
    from svdcli.curate.run.pipeline import opened_folder, run_annotate, run_split
    from svdcli.curate.select.select import select

    if not folder.exists():  # else scores may be there that were computed elsewhere
        require_scores(chosen)
    with opened_folder(folder, chosen):
        listed = run_split(source, folder, chosen, watch(), limit)
        absent = run_annotate(folder, chosen, watch())
        found = accounts(folder)
        _require_clips(found.clips, folder)
        try:
            selection = select(folder, chosen.filter)
        except InputError:  # a score that it wants is not there: hours of work may be seen all the same
            out.say(f"report of what was done before: {write_report(folder)}")
            raise
        packed = pack_clips(folder, chosen.pack, folder / "dataset")
        page = write_report(folder)
    facts = {"folder": folder, "left_aside": listed.left_aside, **found.to_dict(), "not_computed": absent}
    facts |= {
        **_filtered(selection),
        "dataset": packed.place,
        "packed": packed.added + packed.present,
        "report": page,
    }
    lines = [*account_lines(found, listed.left_aside), "", *waterfall_lines(selection.waterfall)]
    out.result(facts, [*lines, "", f"dataset: {packed.place}", f"report: {page}"])
    out.next(f"svd train stage2 --set data.source={shell_word(packed.place)}")


def split(
    source: SOURCE,
    folder: FOLDER,
    recipe: RECIPE = None,
    set_: CHANGES = None,
    workers: WORKERS = None,
    engine: ENGINE = None,
    limit: LIMIT = None,
) -> None:
    """Cut sources into clips that hold no cut, and check each."""
    from svdcli.curate.run.accounts import accounts
    from svdcli.curate.run.pipeline import opened_folder, run_split

    chosen = _recipe(folder, recipe, set_, workers, engine)
    with opened_folder(folder, chosen):
        listed = run_split(source, folder, chosen, watch(), limit)
        found = accounts(folder)
    facts = {"folder": folder, "new": listed.new, "left_aside": listed.left_aside, **found.to_dict()}
    out.result(facts, account_lines(found, listed.left_aside))
    out.next(f"svd curate annotate {shell_word(folder)}")


def annotate(
    folder: FOLDER,
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this annotator; may be given again.")
    ] = None,
    clip: Annotated[str, typer.Option(metavar="ID", help="Measure this clip again, and no other.")] = "",
    recipe: RECIPE = None,
    set_: CHANGES = None,
    workers: WORKERS = None,
    engine: ENGINE = None,
) -> None:
    """Measure clips: motion, camera, text, quality, CLIP, captions. Only what is not measured yet."""
    from svdcli.curate.run.accounts import accounts
    from svdcli.curate.run.pipeline import opened_folder, run_annotate

    _require_folder(folder)
    chosen = _recipe(folder, recipe, set_, workers, engine)
    unknown = sorted(set(only or ()) - set(chosen.annotate.run))
    if unknown:
        raise UsageError(
            f"The recipe runs no annotator {unknown[0]}.", f"It runs {', '.join(chosen.annotate.run)}."
        )
    with opened_folder(folder, chosen):
        absent = run_annotate(folder, chosen, watch(), only or (), clip)
        found = accounts(folder)
    out.result({"folder": folder, **found.to_dict(), "not_computed": absent}, account_lines(found))
    out.next(f"svd curate filter {shell_word(folder)} --explain")


def filter_(
    folder: FOLDER,
    explain: Annotated[
        bool, typer.Option("--explain", help="Only say what would go, in clips and seconds; writes nothing.")
    ] = False,
    refreeze: Annotated[
        bool,
        typer.Option("--refreeze", help="Take the thresholds anew, in place of those in filter.lock.json."),
    ] = False,
    recipe: RECIPE = None,
    set_: CHANGES = None,
) -> None:
    """Choose the clips to keep, by thresholds that are frozen the first time."""
    from svdcli.curate.run.pipeline import opened_folder
    from svdcli.curate.select.select import select

    _require_folder(folder)
    chosen = _recipe(folder, recipe, set_)
    if explain:
        selection = select(folder, chosen.filter, refreeze=refreeze, write=False)
    else:
        with opened_folder(folder, chosen):
            selection = select(folder, chosen.filter, refreeze=refreeze)
    for note in selection.notes:
        out.warn(note)
    lines = waterfall_lines(selection.waterfall)
    if explain:
        lines += ["", *overlap_lines(selection)]
    out.result({"folder": folder, **_filtered(selection)}, lines)
    out.next(f"svd curate {'filter' if explain else 'pack'} {shell_word(folder)}")


def pack(
    folder: FOLDER,
    to: Annotated[
        str | None, typer.Option(metavar="PLACE", help="A folder or URL; absent: OUT/dataset.")
    ] = None,
    recipe: RECIPE = None,
    set_: CHANGES = None,
) -> None:
    """Write the kept clips as shards and an index. What is there already stays as it is."""
    from dataclasses import asdict

    from svdcli.curate.packing.pack import pack as pack_clips
    from svdcli.curate.run.pipeline import opened_folder

    _require_folder(folder)
    chosen = _recipe(folder, recipe, set_)
    with opened_folder(folder, chosen):
        packed = pack_clips(folder, chosen.pack, to or folder / "dataset")
    for name, reason in packed.lost.items():
        out.warn(f"{name} is not in it: {reason}")
    line = f"{packed.place}: {packed.added} clips added ({human_size(packed.bytes)}), {packed.present} were there"
    out.result(asdict(packed), [line + (f", {packed.removed} taken out" if packed.removed else "")])
    out.next(f"svd train stage2 --set data.source={shell_word(packed.place)}")


def report(folder: FOLDER) -> None:
    """Write one page on all of it: funnel, histograms, what filters keep and drop, cuts, failures."""
    from svdcli.curate.pages.report import write_report

    _require_folder(folder)
    page = write_report(folder)
    out.result({"report": page}, str(page))


def explain(
    clip: Annotated[str, typer.Argument(metavar="CLIP", help="The path of a clip, or its id with --folder.")],
    folder: Annotated[
        Path | None,
        typer.Option(metavar="OUT", help="The curation folder; absent: the one that the path is in."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The picture, png; absent: CLIP.png here.")
    ] = None,
) -> None:
    """Draw the frames, flow and boxes behind one clip's scores."""
    from svdcli.curate.pages.explain import explain as draw

    name = Path(clip).stem if "/" in clip or clip.endswith(".mp4") else clip
    home = folder or _home_of(Path(clip))
    _require_folder(home)
    picture = output or Path(f"{name}.png")
    draw(home, name, picture)
    out.result({"clip": name, "picture": picture}, str(picture))


def study(
    folder: FOLDER,
    to: Annotated[Path, typer.Argument(metavar="DEST", help="A folder for the subsets and their recipes.")],
) -> None:
    """Write subsets less 0, 12.5, 25 and 50 % by each score, with a training recipe each, to be ranked."""
    from svdcli.curate.select.study import write_study

    _require_folder(folder)
    made = write_study(folder, to)
    out.result({"folder": to, "study": made}, str(to))


def remove(
    folder: FOLDER,
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Its id, its path, or a folder of such paths.")
    ],
) -> None:
    """Take a source out of clips, scores and dataset, and never take it in again. The video itself stays."""
    from svdcli.curate.packing.takedown import remove_source
    from svdcli.io.lock import lock_run

    _require_folder(folder)
    with lock_run(folder):
        gone = remove_source(folder, source)
    facts = {"sources": gone.sources, "clips": gone.clips}
    out.result(facts, [f"removed {len(gone.sources)} sources and {gone.clips} clips", *gone.sources])


# ---- what they share


def _recipe(
    folder: Path,
    name: str | None,
    changes: list[str] | None,
    workers: int | None = None,
    engine: str | None = None,
) -> Curation:
    """The named recipe, else that of the folder, else the defaults; then the options."""
    from svdcli.cli.recipes import find_recipe
    from svdcli.recipe.curation import load_curation

    own = folder / "curation.json"
    path = find_recipe(name).path if name else own if own.is_file() else None
    overrides = list(changes or [])
    if workers is not None:
        overrides.append(f"executor.workers={workers}")
    if engine is not None:
        overrides.append(f"executor.engine={engine}")
    return load_curation(path, overrides)


def _plan(source: str, folder: Path, chosen: Curation, clips: float | None) -> None:
    from svdcli.curate.run.plan import plan

    found = plan(source, chosen, clips=clips)
    out.result(found.to_dict(), plan_lines(found))
    out.next(f"svd curate run {shell_word(source)} {shell_word(folder)}")


def _filtered(selection: Selection) -> dict[str, Any]:
    """The waterfall, for --json."""
    fall = selection.waterfall
    steps = [
        {
            "filter": s.reason.name,
            "drops": s.reason.words,
            "clips": s.dropped.clips,
            "seconds": s.dropped.seconds,
            "alone": {"clips": s.alone.clips, "seconds": s.alone.seconds},
            "no_other": {"clips": s.only.clips, "seconds": s.only.seconds},
        }
        for s in fall.steps
    ]
    kept = {"clips": fall.kept.clips, "seconds": fall.kept.seconds}
    overlaps = [
        {
            "filters": pair,
            "clips": amount.clips,
            "seconds": amount.seconds,
            "correlation": selection.correlations.get(pair),
        }
        for pair, amount in fall.overlaps.items()
    ]
    judged = {"clips": fall.all.clips, "seconds": fall.all.seconds}
    return {"filters": steps, "kept": kept, "judged": judged, "overlaps": overlaps}


def _require_folder(folder: Path) -> None:
    if not (folder / "curation.json").is_file():
        raise UsageError(
            f"{folder} is no curation folder.", f"Begin one: svd curate split SRC {shell_word(folder)}"
        )


def _require_clips(count: int, folder: Path) -> None:
    from svdcli.errors import InputError

    if not count:
        raise InputError(
            "No clip came out of these inputs.", f"See why: svd curate report {shell_word(folder)}"
        )


def _home_of(clip: Path) -> Path:
    """The curation folder that a clip's path lies in: OUT/clips/ab/ID.mp4."""
    return clip.parents[2] if len(clip.parents) > 2 else Path()
