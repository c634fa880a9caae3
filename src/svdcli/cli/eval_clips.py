"""`svd eval motion|faithful|flicker|compare`: measures of clips that were generated, one by one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from svdcli.cli.console import out, table
from svdcli.errors import InputError, SvdError, ThresholdError, UsageError

if TYPE_CHECKING:
    from svdcli.data.motion import MotionCalibration
    from svdcli.evaluate.videos import Manifested

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Generated videos, with their sidecars.")]
Pictures = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="What they were made of, by name; else each sidecar's source."),
]
Out = Annotated[Path | None, typer.Option("--out", metavar="FILE.json", help="Write the whole result here.")]
Cache = Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where measures are kept.")]
Rows = dict[str, dict[str, float]]


def motion(
    folder: Folder,
    bundle: Annotated[
        str | None, typer.Option(metavar="REF", help="Whose calibration says what a bucket asks for.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help='Camera moves asked for: {"clip": "zoom_in"}')
    ] = None,
    out_file: Out = None,
    cache: Cache = None,
) -> None:
    """Measured motion against the motion bucket asked for, and the camera's move against its label."""
    from svdcli.evaluate.motion_response import Asked, motion_response

    clips = _clips(folder)
    rows = _measure(clips, ("motion", "dynamic_degree"), None, cache)
    asked = [
        Asked(f"{c.manifest.get('source')}, {c.manifest.get('seed')}", bucket, row["motion"])
        for c in clips
        if "motion" in (row := rows.get(str(c.path), {})) and (bucket := _bucket(c)) is not None
    ]
    moving = [row["dynamic_degree"] for row in rows.values() if "dynamic_degree" in row]
    degree = sum(moving) / len(moving) if moving else None
    result: dict[str, Any] = {"kind": "svd-eval-motion", "dynamic_degree": degree}
    if told := _labels(clips, labels):
        result["camera"] = _camera(clips, told)
    if asked:
        result |= motion_response(asked, _calibration(bundle, clips))
        if result["uneven"]:
            out.warn(
                "the buckets were not asked of the same pictures, so the curve compares pictures too; the Spearman does not"
            )
    elif not told:
        raise InputError(
            f"No video in {folder} says which motion was asked for.", "Give --labels, or sidecars."
        )
    answer(result, out_file, _motion_lines(result))


def faithful(folder: Folder, pictures: Pictures = None, out_file: Out = None, cache: Cache = None) -> None:
    """The first frame against the picture that a video was made of."""
    from svdcli.evaluate.measures import FAITHFUL

    rows = _measure(_clips(folder), FAITHFUL, pictures, cache)
    without = sorted(Path(path).name for path, row in rows.items() if not row)
    if len(without) == len(rows):
        raise InputError(
            f"No video in {folder} says what it was made of.", "Give --pictures, a folder of them."
        )
    for name in without:
        out.warn(f"{name}: what it was made of is not known, so it does not count")
    _report("svd-eval-faithful", rows, out_file, {"without_picture": without})


def flicker(folder: Folder, out_file: Out = None, cache: Cache = None) -> None:
    """Steadiness in time: flicker, warping error, drift of colour and detail, and whether clips move at all."""
    from svdcli.evaluate.measures import FLICKER, NOT_HERE

    rows = _measure(_clips(folder), FLICKER, None, cache)
    _report("svd-eval-flicker", rows, out_file, {"not_computed": NOT_HERE})


def compare(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]FOLDER...", help="Videos of the same pictures and seeds, named alike."
        ),
    ],
    page: Annotated[Path, typer.Option(metavar="FILE.html", help="The page to write.")] = Path(
        "compare.html"
    ),
    real: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Real videos, for FVD.")] = None,
    i3d: Annotated[str | None, typer.Option(metavar="FILE|HUB-ID", help="As in svd eval fvd.")] = None,
    protocol: Annotated[str, typer.Option(help="As in svd eval fvd.")] = "matched",
    force: Annotated[bool, typer.Option("--force", help="FVD of fewer than 64 videos all the same.")] = False,
    pictures: Pictures = None,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(metavar="CONDITION", help='Exit with 6 if it holds: "fvd>300"; repeatable.'),
    ] = None,
    out_file: Out = None,
    cache: Cache = None,
) -> None:
    """Several models side by side, on one page: videos, measures, gaps with intervals."""
    from svdcli.evaluate.compare import compare_models, figures, write_page
    from svdcli.evaluate.measures import MEASURES
    from svdcli.evaluate.results import Threshold, failures
    from svdcli.io.files import check_writable

    folders, names = named_folders(models), tuple(MEASURES)
    thresholds = [Threshold.parse(text) for text in fail_if or []]
    if page.suffix.lower() != ".html":
        raise UsageError(f"--page {page} is no page.", "Give a name that ends in .html.")
    check_writable(page)
    distances = _distances(real, folders, i3d, protocol, cache, force) if real else {}
    with out.progress("measures", total=count_videos(folders)) as bar:
        result = compare_models(
            folders, names, _by_name(pictures), _cache(cache), lambda n: bar.advance(1, n)
        )
    warn_left_out(result["left_out"])
    if lacking := result["lacking"]:
        out.warn(f"not in every folder, and not measured: {', '.join(lacking[:12])}")
    for text in result["cautions"]:
        out.warn(text)
    result["fvd"] = distances
    failed = failures(thresholds, figures(result))
    result |= {"page": str(page), "failed": failed, "passed": not failed}
    write_page(page, result)
    answer(result, out_file, [*_compare_lines(figures(result)), str(page)])
    if failed:  # after the answer: CI wants both the figures and the exit code
        raise ThresholdError("; ".join(failed), "These are the thresholds of --fail-if.")


COMMANDS = (motion, faithful, flicker, compare)


# ---- parts that other commands of `svd eval` share


def answer(result: dict[str, Any], file: Path | None, lines: list[str]) -> None:
    """Save the whole result where asked, then print it."""
    if file is not None:
        from svdcli.evaluate.results import save_result

        save_result(file, result)
    out.result(result, lines)


def named_folders(models: list[str]) -> dict[str, Path]:
    """[NAME=]FOLDER... -> folders by name. Raises UsageError for a name that comes twice, or fewer than two."""
    folders: dict[str, Path] = {}
    for given in models:
        name, separator, folder = given.rpartition("=")
        path = Path(folder if separator else given)
        key = name if separator else path.resolve().name
        if not key or key in folders:
            raise UsageError(f"Two models are called {key!r}.", "Name them: ours=runs/a theirs=runs/b")
        folders[key] = path
    if len(folders) < 2:
        raise UsageError("A comparison needs two folders at least.", "Name them: ours=runs/a theirs=runs/b")
    return folders


def warn_left_out(left_out: dict[str, str], most: int = 12) -> None:
    """Say which videos do not count, and why."""
    for path, reason in list(left_out.items())[:most]:
        out.warn(f"{path} is left out: {reason}")
    if len(left_out) > most:
        out.warn(f"{len(left_out) - most} further videos are left out: --json has all of them")


def interval(row: dict[str, Any]) -> str:
    """One video has no interval."""
    return "-" if row["low"] != row["low"] else f"{row['low']:.4g} to {row['high']:.4g}"


def count_videos(folders: dict[str, Path]) -> int:
    """Videos that every folder has, times folders."""
    from svdcli.evaluate.videos import pair_videos

    return len(pair_videos(list(folders.values()))[0]) * len(folders)


# ---- measuring


def _clips(folder: Path) -> list[Manifested]:
    from svdcli.evaluate.videos import with_manifests

    return with_manifests(folder)


def _measure(
    clips: list[Manifested], names: tuple[str, ...], pictures: Path | None, cache: Path | None
) -> Rows:
    from svdcli.evaluate.measures import measure_clips

    with out.progress("measures", total=len(clips)) as bar:
        rows, left_out = measure_clips(
            clips, names, _by_name(pictures), _cache(cache), lambda note: bar.advance(1, note)
        )
    warn_left_out(left_out)
    return rows


def _cache(cache: Path | None) -> Path:
    from svdcli.evaluate.features import default_cache

    return cache or default_cache()


def _by_name(pictures: Path | None) -> dict[str, Path]:
    from svdcli.io.images import find_pictures

    return {path.stem: path for path in find_pictures([pictures])} if pictures else {}


def _bucket(clip: Manifested) -> float | None:
    found = clip.manifest.get("motion_bucket")
    return float(found) if isinstance(found, (int, float)) else None


def _labels(clips: list[Manifested], file: Path | None) -> dict[str, str]:
    """The camera move that was asked of each clip, by file name; the table goes before the sidecars."""
    from svdcli.io.manifest import read_manifest

    own = {c.path.stem: str(c.manifest["camera"]) for c in clips if isinstance(c.manifest.get("camera"), str)}
    return own | ({name: str(label) for name, label in read_manifest(file).items()} if file else {})


def _calibration(bundle: str | None, clips: list[Manifested]) -> MotionCalibration | None:
    """The bundle's own map from motion to buckets; of the clips' bundle where none is named and it is here."""
    from svdcli.data.motion import MotionCalibration
    from svdcli.model.bundle import open_bundle

    named = {str(c.manifest["bundle"]) for c in clips if c.manifest.get("bundle")}
    reference = bundle or (named.pop() if len(named) == 1 else None)
    if reference is None:
        return None
    try:
        knots = open_bundle(reference).settings.motion_calibration
    except SvdError as error:
        if bundle is not None:
            raise
        out.warn(f"what a bucket of {reference} asks for is not known: {error.message}")
        return None
    if not knots:
        out.warn(f"{reference} has no motion calibration, so only ranks can be compared")
    return MotionCalibration.from_knots(knots) if knots else None


def _camera(clips: list[Manifested], labels: dict[str, str]) -> dict[str, Any]:
    from svdcli.data.camera_class import camera_class, is_right
    from svdcli.evaluate.videos import read_whole

    found = {}
    for clip in clips:
        if (label := labels.get(clip.path.stem)) is not None:
            move, mean, shake = camera_class(*read_whole(clip.path))
            told = {"asked": label, "found": move, "right": is_right(label, move), "shake": shake}
            found[clip.path.stem] = told | asdict(mean)
    if not found:
        raise InputError(
            "No video bears a name that the labels have.", "Labels are by file name without suffix."
        )
    right = sum(bool(c["right"]) for c in found.values())
    return {"accuracy": right / len(found), "num": len(found), "clips": found}


def _distances(
    real: Path, folders: dict[str, Path], i3d: str | None, protocol: str, cache: Path | None, force: bool
) -> dict[str, Any]:
    """FVD of each folder to the real videos."""
    from svdcli.evaluate.features import measure_features
    from svdcli.evaluate.fvd import compare_sets, require_enough
    from svdcli.evaluate.networks import open_network
    from svdcli.evaluate.protocols import find_protocol
    from svdcli.evaluate.videos import find_videos

    chosen, true = find_protocol(protocol), find_videos(real)
    sets = {model: find_videos(folder) for model, folder in folders.items()}
    for videos in sets.values():
        require_enough(len(true), len(videos), force)
    network = open_network(i3d)
    with out.progress("features", total=len(true) + sum(map(len, sets.values()))) as bar:
        first, *others = (
            measure_features(videos, chosen, network, _cache(cache), lambda note: bar.advance(1, note))
            for videos in (true, *sets.values())
        )
    return {
        model: compare_sets(first, found, chosen, network, force)
        for model, found in zip(sets, others, strict=True)
    }


# ---- answers


def _report(kind: str, rows: Rows, file: Path | None, more: dict[str, Any]) -> None:
    from svdcli.evaluate.measures import summarise

    found = summarise(rows)
    lines = table(
        [
            (
                name,
                f"{row['mean']:.4g}",
                interval(row),
                str(row["num"]),
                row["about"],
            )
            for name, row in found.items()
        ],
        header=("measure", "mean", "95 % interval", "videos", "what it is"),
    )
    answer({"kind": kind, "measures": found, "videos": rows, **more}, file, lines)


def _motion_lines(result: dict[str, Any]) -> list[str]:
    lines = []
    if "curve" in result:
        asked = ["asked score", "measured bucket"] if "asked_score" in result["curve"][0] else []
        rows = [
            [f"{p['bucket']:g}", str(p["num_clips"]), f"{p['mean_score']:.4f}"]
            + ([f"{p['asked_score']:.4f}", f"{p['mean_measured_bucket']:.0f}"] if asked else [])
            for p in result["curve"]
        ]
        lines += table(rows, header=["bucket", "videos", "motion", *asked])
        each = result["mean_of_spearman"]
        told = f"{each:.2f} (mean over {result['num_groups']} pictures), " if each is not None else ""
        lines.append(f"Spearman: {told}{result['pooled']:.2f} pooled")
    if result["dynamic_degree"] is not None:
        lines.append(f"dynamic degree {result['dynamic_degree']:.2f}")
    if "camera" in result:
        lines.append(f"camera moves right: {result['camera']['accuracy']:.0%} of {result['camera']['num']}")
    return lines


def _compare_lines(values: Rows) -> list[str]:
    names = list(dict.fromkeys(name for row in values.values() for name in row))
    rows = [
        [name, *(f"{row[name]:.4g}" if name in row else "-" for row in values.values())] for name in names
    ]
    return table(rows, header=["measure", *values])
