"""`svd eval prefer`: which of two videos do people like better? Plan the study, ask, rank."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from svdcli.cli.console import out, table
from svdcli.cli.eval_clips import count_videos, named_folders


class Axis(StrEnum):
    quality = "quality"
    following = "following"


class Method(StrEnum):
    davidson = "davidson"
    svd_elo = "svd-elo"


StudyFolder = Annotated[Path, typer.Argument(metavar="STUDY", help="A folder that `plan` made.")]


def register(group: typer.Typer) -> None:
    prefer = typer.Typer(
        no_args_is_help=True, rich_markup_mode=None, help="A blind study: which video do people prefer?"
    )
    prefer.command()(plan)
    prefer.command()(serve)
    prefer.command()(rank)
    prefer.command()(export)
    prefer.command("import")(import_)
    group.add_typer(prefer, name="prefer")


def plan(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="The folder to make.")],
    models: Annotated[
        list[str],
        typer.Argument(metavar="[NAME=]FOLDER...", help="Each model's videos, named alike for one prompt."),
    ],
    axis: Annotated[list[Axis] | None, typer.Option(help="quality, following; repeat for both.")] = None,
    votes: Annotated[int, typer.Option(min=1, help="Wanted for each comparison and axis.")] = 3,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help='Texts by video name: {"cat": "a cat runs"}')
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="The pictures that were animated, by video name.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the order and the sides.")] = 0,
    title: Annotated[str, typer.Option(help="What raters read at the top.")] = "Video preferences",
) -> None:
    """Make a blinded, balanced study of all pairs of models, with attention checks."""
    from svdcli.evaluate.prefer.study import plan_study
    from svdcli.io.images import find_pictures
    from svdcli.io.manifest import read_manifest

    folders = named_folders(models)
    texts = {name: str(text) for name, text in read_manifest(prompts).items()} if prompts else {}
    by_name = {path.stem: path for path in find_pictures([pictures])} if pictures else {}
    axes = [chosen.value for chosen in axis or [Axis.quality]]
    with out.progress("blinding", total=count_videos(folders)) as bar:
        made = plan_study(folders, study, axes, votes, texts, by_name, seed, title, bar.advance)
    for note in made.notes:
        out.warn(note)
    wanted = len(made.pairs) * len(axes) * votes
    checks = len(made.comparisons) - len(made.pairs)
    facts = {"study": study, "comparisons": len(made.pairs), "checks": checks, "votes_wanted": wanted}
    out.result(
        facts, f"{study}: {len(made.pairs)} comparisons, {checks} attention checks, {wanted} votes wanted"
    )
    out.next(f"svd eval prefer serve {study}")


def serve(
    study: StudyFolder,
    host: Annotated[
        str, typer.Option(help="0.0.0.0 for other machines; then a token is needed.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes any free one.")] = 8765,
    token: Annotated[str, typer.Option(help="Ask for it in the address; made up where it is needed.")] = "",
    active: Annotated[
        bool, typer.Option("--active", help="Ask next what would sharpen the ranking most.")
    ] = False,
) -> None:
    """Open the page where people vote; Ctrl-C ends it, the same command goes on."""
    from svdcli.evaluate.prefer.rank import active_pick
    from svdcli.evaluate.prefer.server import Desk
    from svdcli.evaluate.prefer.server import serve as listen
    from svdcli.evaluate.prefer.study import load_study
    from svdcli.evaluate.prefer.votes import VoteStore

    loaded = load_study(study)
    store = VoteStore(study, loaded)
    before = len(store.votes())
    desk = Desk(study, loaded, store, token, pick=active_pick(loaded) if active else None)
    server = listen(desk, host, port)
    query = f"?token={desk.token}" if desk.token else ""
    out.say(f"{before} votes so far; voting at http://{host}:{server.server_port}/{query}   (Ctrl-C ends it)")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
    now = len(store.votes())
    store.close()
    out.result(
        {"study": study, "votes": now, "new_votes": now - before}, f"{now} votes, {now - before} of them new"
    )
    out.next(f"svd eval prefer rank {study}")


def rank(
    study: StudyFolder,
    method: Annotated[Method, typer.Option(help="svd-elo: as in the paper.")] = Method.davidson,
    keep_all: Annotated[
        bool, typer.Option("--keep-all", help="Count raters who failed their attention checks too.")
    ] = False,
    out_file: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.json", help="Write it here too.")
    ] = None,
) -> None:
    """Rank the models, with intervals, and say how many votes are still needed."""
    from svdcli.evaluate.prefer.rank import rank_study
    from svdcli.evaluate.prefer.study import load_study
    from svdcli.evaluate.prefer.votes import VoteStore
    from svdcli.evaluate.results import save_result

    loaded = load_study(study)
    store = VoteStore(study, loaded)
    votes = store.votes()
    store.close()
    result = rank_study(loaded, votes, method.value, keep_all)
    for rater, checks in result["raters_excluded"].items():
        out.warn(f"{rater} failed {checks['failed']} of {checks['seen']} attention checks and does not count")
    if out_file is not None:
        save_result(out_file, result)
    out.result(result, _ranking_lines(result))


def export(
    study: StudyFolder,
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make.")],
    base_url: Annotated[str, typer.Option(help="Where it will lie: https://HOST/PATH")] = "",
) -> None:
    """Write the study as a folder to upload: a page without a server, tasks.csv, a crowd form."""
    from svdcli.evaluate.prefer.exchange import export_study
    from svdcli.evaluate.prefer.study import load_study

    num = export_study(load_study(study), study, folder, base_url)
    out.result({"folder": folder, "tasks": num}, f"{folder}: {num} tasks")
    out.next(f"svd eval prefer import {study} votes.csv")


def import_(
    study: StudyFolder,
    file: Annotated[Path, typer.Argument(metavar="VOTES.csv", help="Columns task, rater, choice.")],
) -> None:
    """Add the votes of a crowd platform, or of the exported page."""
    from svdcli.evaluate.prefer.exchange import import_votes
    from svdcli.evaluate.prefer.study import load_study
    from svdcli.evaluate.prefer.votes import VoteStore

    store = VoteStore(study, load_study(study))
    num = import_votes(store, file)
    total = len(store.votes())
    store.close()
    out.result({"imported": num, "votes": total}, f"{num} votes imported, {total} in all")
    out.next(f"svd eval prefer rank {study}")


# ---- parts


def _ranking_lines(result: dict[str, Any]) -> list[str]:
    lines, shown = [], dict(result["axes"])
    if len(shown) > 1:
        shown["aggregated"] = {"models": result["aggregated"], "num_votes": result["num_votes"]}
    for name, axis in shown.items():
        lines.append(f"{name}: {axis['num_votes']} votes")
        lines += table(
            [
                (f"  {row['model']}", f"{row['rating']:.0f}", f"{row['low']:.0f} to {row['high']:.0f}")
                for row in axis["models"]
            ]
        )
        for pair in axis.get("pairs", ()):
            told = f"  {pair['better']} over {pair['worse']}: {pair['won']} won, {pair['lost']} lost, {pair['tied']} tied; "
            lines.append(told + _verdict(pair))
        if "left_advantage_elo" in axis:
            lines.append(
                f"  the left side is worth {axis['left_advantage_elo']:+.0f} points, and won {axis['left_won']:.0%}"
            )
    return lines


def _verdict(pair: dict[str, Any]) -> str:
    if pair["separated"]:
        return f"gap {pair['gap']:.0f} ({pair['low']:.0f} to {pair['high']:.0f})"
    if pair["more_votes"] == float("inf"):
        return "no difference in sight"
    return f"not separated: about {pair['more_votes']} more votes in all would do it"
