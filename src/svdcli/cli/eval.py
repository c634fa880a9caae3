"""`svd eval`: how good videos are, each figure with its protocol, its number of videos and its interval."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from svdcli.cli import prefer
from svdcli.cli.console import out, table

if TYPE_CHECKING:
    from svdcli.evaluate.features import FeatureSet


class ProtocolName(StrEnum):
    matched = "matched"
    svd_ucf101 = "svd-ucf101"
    stylegan_v = "stylegan-v"


Out = Annotated[Path | None, typer.Option("--out", metavar="FILE.json", help="Write the whole result here.")]


def register(app: typer.Typer) -> None:
    group = typer.Typer(
        no_args_is_help=True, rich_markup_mode=None, help="Measure videos, and ask people about them."
    )
    for command in (fvd, explain):
        group.command()(command)
    prefer.register(group)
    app.add_typer(group, name="eval")


# ---- commands


def fvd(
    real: Annotated[Path, typer.Argument(metavar="REAL", help="A folder of real videos.")],
    generated: Annotated[Path, typer.Argument(metavar="GENERATED", help="A folder of generated videos.")],
    protocol: Annotated[
        ProtocolName, typer.Option(help="Which frames, at what size.")
    ] = ProtocolName.matched,
    i3d: Annotated[
        str | None,
        typer.Option(metavar="FILE|HUB-ID", help="The I3D network; else SVD_I3D, else the hub's cache."),
    ] = None,
    frames: Annotated[int | None, typer.Option(help="Frames a clip, in place of the protocol's.")] = None,
    fps: Annotated[float | None, typer.Option(help="Their rate, in place of the protocol's.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")] = "cpu",
    cache: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where features are kept.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Measure fewer than 64 videos all the same.")
    ] = False,
    out_file: Out = None,
) -> None:
    """Fréchet video distance of two folders, with kernel distance, floor and protocol hash."""
    from svdcli.evaluate.features import default_cache, measure_features
    from svdcli.evaluate.fvd import compare_sets, require_enough
    from svdcli.evaluate.networks import open_network
    from svdcli.evaluate.protocols import find_protocol
    from svdcli.evaluate.videos import find_videos

    chosen = find_protocol(protocol.value, frames, fps)
    sets = find_videos(real), find_videos(generated)
    require_enough(len(sets[0]), len(sets[1]), force)
    network = open_network(i3d, device)
    out.say(f"protocol {chosen.name} ({chosen.digest(network.sha256)}): {chosen.about}")
    measured: list[FeatureSet] = []
    with out.progress("features", total=sum(map(len, sets))) as bar:
        for videos in sets:
            measured.append(
                measure_features(
                    videos, chosen, network, cache or default_cache(), lambda note: bar.advance(1, note)
                )
            )
    result = compare_sets(measured[0], measured[1], chosen, network, force)
    for caution in result["cautions"]:
        out.warn(caution)
    _answer(result, out_file, _fvd_lines(result))


def explain(
    first: Annotated[Path, typer.Argument(metavar="A.json", help="A result of svd eval fvd --out.")],
    second: Annotated[Path, typer.Argument(metavar="B.json", help="Another one.")],
) -> None:
    """Say whether two FVDs can be compared, and if not, why."""
    from svdcli.evaluate.explain import explain as explain_results
    from svdcli.io.manifest import read_manifest

    found = explain_results(read_manifest(first), read_manifest(second))
    verdict = "comparable" if found["comparable"] else "not comparable"
    lines = [f"{verdict}: {found['fvd'][0]:.2f} and {found['fvd'][1]:.2f}"]
    lines += [f"differs: {text}" for text in found["differences"]]
    lines += [f"note: {text}" for text in found["notes"]]
    out.result(found, lines)


# ---- answers


def _answer(result: dict[str, Any], file: Path | None, lines: list[str]) -> None:
    """Save the whole result where asked, then print it."""
    if file is not None:
        from svdcli.io.manifest import write_manifest

        write_manifest(file, result)
    out.result(result, lines)


def _fvd_lines(result: dict[str, Any]) -> list[str]:
    kernel, floor = result["kernel_distance"], result["floor"]
    rows = [
        ("FVD", f"{result['fvd']:.2f}", f"{result['num_real']} real, {result['num_generated']} generated"),
        (
            "kernel distance",
            f"{kernel['value']:.4g}",
            f"95 % interval {kernel['low']:.4g} to {kernel['high']:.4g}",
        ),
    ]
    if floor:
        rows += [
            (
                f"FVD at {floor['num']}, real to real",
                f"{floor['real_to_real']:.2f}",
                "the floor: equal distributions",
            ),
            (
                f"FVD at {floor['num']}, real to generated",
                f"{floor['real_to_generated']:.2f}",
                f"sd {floor['real_to_generated_sd']:.2f} over {floor['num_splits']} draws",
            ),
        ]
    name = result["protocol"]["name"]
    return table([*rows, ("protocol", name, f"{result['protocol_hash']}, {result['network']['name']}")])
