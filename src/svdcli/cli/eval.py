"""`svd eval`: how good videos are, each figure with its protocol, its number of videos and its interval."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from svdcli.cli import eval_clips, eval_model, prefer
from svdcli.cli.console import out, table
from svdcli.cli.eval_clips import Out
from svdcli.errors import InputError, UsageError

if TYPE_CHECKING:
    from svdcli.evaluate.features import FeatureSet
    from svdcli.evaluate.views import Judges


class ProtocolName(StrEnum):
    matched = "matched"
    svd_ucf101 = "svd-ucf101"
    stylegan_v = "stylegan-v"


def register(app: typer.Typer) -> None:
    group = typer.Typer(
        no_args_is_help=True, rich_markup_mode=None, help="Measure videos, and ask people about them."
    )
    for command in (eval_model.model, fvd, explain, views, shape, *eval_clips.COMMANDS):
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
    eval_clips.warn_left_out({**measured[0].left_out, **measured[1].left_out})
    result = compare_sets(measured[0], measured[1], chosen, network, force)
    for caution in result["cautions"]:
        out.warn(caution)
    eval_clips.answer(result, out_file, _fvd_lines(result))


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


def views(
    truth: Annotated[
        Path, typer.Argument(metavar="TRUTH", help="True orbits: a video or folder of views each.")
    ],
    made: Annotated[Path, typer.Argument(metavar="MADE", help="Generated orbits of the same names.")],
    lpips_backbone: Annotated[
        Path | None, typer.Option(metavar="FILE", help="torchvision's alexnet or vgg16 weights.")
    ] = None,
    lpips_heads: Annotated[Path | None, typer.Option(metavar="FILE", help="LPIPS's linear heads.")] = None,
    st_lpips: Annotated[
        bool, typer.Option("--st-lpips", help="Shift-tolerant LPIPS; not the LPIPS of papers.")
    ] = False,
    clip: Annotated[
        str | None, typer.Option(metavar="BUNDLE|FOLDER", help="A CLIP tower, for CLIP-S.")
    ] = None,
    out_file: Out = None,
) -> None:
    """Orbits against true orbits: LPIPS, PSNR, SSIM, CLIP-S, MSE, beside a blank frame."""
    from svdcli.evaluate.orbits import find_orbits, load_orbit
    from svdcli.evaluate.views import compare_orbit, summarise

    judges = _judges(lpips_backbone, lpips_heads, st_lpips, clip)
    true_ones, made_ones = find_orbits(truth), find_orbits(made)
    if len(true_ones) == len(made_ones) == 1:  # one orbit each, whatever they are called
        made_ones = dict(zip(true_ones, made_ones.values(), strict=True))
    objects, left_out = [], {name: "not made" for name in true_ones if name not in made_ones}
    left_out |= {name: "no truth" for name in made_ones if name not in true_ones}
    with out.progress("objects", total=len(true_ones)) as bar:
        for name in [name for name in true_ones if name in made_ones]:
            try:
                pair = load_orbit(name, true_ones[name]), load_orbit(name, made_ones[name])
                objects.append(compare_orbit(*pair, judges))
            except InputError as error:
                left_out[name] = error.message
            bar.advance(1, name)
    for name, reason in left_out.items():
        out.warn(f"{name} is left out: {reason}")
    result = summarise(objects, judges) | {"left_out": left_out}
    for name, reason in result["not_computed"].items():
        out.warn(f"{name}: {reason}")
    eval_clips.answer(result, out_file, _views_lines(result))


def shape(
    truth: Annotated[
        Path, typer.Argument(metavar="TRUTH", help="A mesh or cloud: ply, obj, glb, gltf, stl, pcd, xyz.")
    ],
    made: Annotated[Path, typer.Argument(metavar="MADE", help="Another one.")],
    fit: Annotated[bool, typer.Option("--fit", help="Centre both, and scale both to a side of 1.")] = False,
    out_file: Out = None,
) -> None:
    """A shape against the true one: Chamfer distance, F-score, volume IoU."""
    from svdcli.evaluate.geometry import compare_shapes
    from svdcli.evaluate.shapes import read_shape

    result = compare_shapes(read_shape(truth), read_shape(made), fit)
    iou = result["volume_iou"]
    scores = [(f"F-score at {limit}", f"{value:.4f}") for limit, value in result["f_score"].items()]
    told = f"{iou:.4f}" if iou is not None else f"not computed: {result['not_computed']['volume_iou']}"
    rows = [("Chamfer distance", f"{result['chamfer']:.5f}"), *scores, ("volume IoU", told)]
    eval_clips.answer(result, out_file, [*table(rows), result["conventions"]])


# ---- parts


def _judges(backbone: Path | None, heads: Path | None, st_lpips: bool, clip: str | None) -> Judges:
    """The networks that were given, loaded."""
    from svdcli.evaluate.clip_similarity import load_clip
    from svdcli.evaluate.lpips import load_lpips, load_st_lpips
    from svdcli.evaluate.views import Judges

    if (backbone is None) != (heads is None) or (st_lpips and backbone is not None):
        raise UsageError("LPIPS needs a backbone and its heads.", "Give both files, or --st-lpips alone.")
    perceptual = load_st_lpips() if st_lpips else None
    if backbone is not None and heads is not None:
        perceptual = load_lpips(backbone, heads)
    return Judges(perceptual, perceptual.name if perceptual else "lpips", load_clip(clip) if clip else None)


def _views_lines(result: dict[str, Any]) -> list[str]:
    rows = [
        (region, name, f"{row['mean']:.4f}", eval_clips.interval(row), f"{row['blank']:.4f}")
        for region, measures in result["regions"].items()
        for name, row in measures.items()
    ]
    lines = table(rows, header=("region", "measure", "mean", "95 % interval", "blank frame"))
    return [*lines, f"{result['num_objects']} objects; {result['conventions']}"]


# ---- answers


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
