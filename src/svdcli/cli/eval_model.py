"""`svd eval model`: everything that can be measured of a model without asking people, as one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from svdcli.cli.choices import (
    DEFAULT_OVERLAP,
    DeviceOption,
    PrecisionOption,
    add_loras,
    choose_device,
    choose_dtype,
    choose_sampling,
    read_lora_option,
    settle,
)
from svdcli.cli.console import out, table
from svdcli.cli.eval_clips import Cache, Out, answer
from svdcli.errors import InputError, ThresholdError, UsageError

if TYPE_CHECKING:
    from svdcli.data.motion import MotionCalibration
    from svdcli.engine.generate import Sampling
    from svdcli.engine.plan import Planner
    from svdcli.evaluate.cases import Case, View
    from svdcli.evaluate.model_report import Sets
    from svdcli.evaluate.networks import Network
    from svdcli.evaluate.protocols import Protocol
    from svdcli.model.bundle_files import BundleFiles

HELP_MODELS = "Bundles, each with LoRAs or without: nano, pan=nano+runs/pan:0.8; else the best one here."
HELP_CLIPS = "Real videos; of them those that the model's own recipe held out, or all where it says nothing."
HELP_DRAW = "Draw frames of such videos only (repeatable): for a page that others will see."
HELP_WORK = "Where the clips are made and kept; the same command goes on there."
HELP_PICTURES = "Pictures that are asked for every bucket."
HELP_FORCE = "FVD of fewer than 64 clips all the same."
MOST_DRAWN = 8


def model(
    models: Annotated[list[str] | None, typer.Argument(metavar="[NAME=]MODEL[+LORA]...", help=HELP_MODELS)] = None,
    clips: Annotated[Path, typer.Option(metavar="FOLDER", help=HELP_CLIPS)] = ...,  # type: ignore[assignment]
    page: Annotated[Path, typer.Option(metavar="FILE.html", help="The page to write.")] = Path("model.html"),
    frames: Annotated[int | None, typer.Option(min=2, help="Frames of a clip; else the bundle's own.")] = None,
    fps: Annotated[float | None, typer.Option(help="Frames a second; else the bundle's own.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps; else the bundle's own.")] = None,
    guidance: Annotated[str | None, typer.Option(metavar="SCALE", help="As in svd sample.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63, help="Of every clip.")] = 23,
    per_video: Annotated[int, typer.Option(min=1, help="Clips of a video, spread evenly over it.")] = 1,
    pictures: Annotated[int, typer.Option(min=1, help=HELP_PICTURES)] = 16,
    buckets: Annotated[str, typer.Option(metavar="LIST", help="Motion buckets.")] = "20,60,127,200",
    draw: Annotated[list[str] | None, typer.Option(metavar="PATTERN", help=HELP_DRAW)] = None,
    note: Annotated[str, typer.Option(metavar="TEXT", help="For the foot of the page, such as whose clips they are.")] = "",
    i3d: Annotated[str | None, typer.Option(metavar="FILE|HUB-ID", help="As in svd eval fvd.")] = None,
    protocol: Annotated[str, typer.Option(help="As in svd eval fvd.")] = "matched",
    force: Annotated[bool, typer.Option("--force", help=HELP_FORCE)] = False,
    fail_if: Annotated[
        list[str] | None, typer.Option(metavar="CONDITION", help='Exit with 6 if it holds: "fvd>300"; repeatable.')
    ] = None,
    work: Annotated[Path, typer.Option(metavar="FOLDER", help=HELP_WORK)] = Path("runs/eval-model"),
    device: DeviceOption = "auto",
    dtype: PrecisionOption = None,
    out_file: Out = None,
    cache: Cache = None,
) -> None:  # fmt: skip
    """Measure models whole: distances, motion, faithfulness, steadiness, autoencoder, on one page."""
    from svdcli.evaluate.features import default_cache
    from svdcli.evaluate.model_page import write_model_page
    from svdcli.evaluate.model_report import KIND, figures
    from svdcli.evaluate.networks import open_network
    from svdcli.evaluate.protocols import find_protocol
    from svdcli.evaluate.results import Threshold, failures
    from svdcli.evaluate.videos import find_videos
    from svdcli.io.files import check_writable

    thresholds = [Threshold.parse(text) for text in fail_if or []]
    levels = read_buckets(buckets)
    find_protocol(protocol)
    if page.suffix.lower() != ".html":
        raise UsageError(f"--page {page} is no page.", "Give a name that ends in .html.")
    check_writable(page)
    videos = find_videos(clips)
    asked = {"num_frames": frames, "fps": fps, "num_steps": steps, "guidance": guidance}
    where = choose_device(device)
    found = {name: _planner(files, asked, where, dtype) for name, files in open_models(models or []).items()}
    network = open_network(i3d, str(where))
    trial = Trial(
        videos, work, per_video, pictures, levels, seed, protocol, network, cache or default_cache(), force
    )
    result: dict[str, Any] = {
        "kind": KIND,
        "command": _command(models, clips, page, asked, trial, draw),
        "models": {},
    }
    drawn = {}
    for name, planner in found.items():
        result["models"][name], sets = trial.of(name, planner)
        by_video = {case.video: case for case in reversed((*sets.moved, *sets.cases))}
        shown = [case for video, case in by_video.items() if any(fnmatch(video, p) for p in draw or ["*"])]
        shown.sort(key=lambda case: (case not in sets.moved, case.name))  # first those at every bucket
        drawn[name] = [(sets, case) for case in shown[:MOST_DRAWN]]
    write_model_page(page, result, drawn, note)
    values = {name: figures(told) for name, told in result["models"].items()}
    failed = failures(thresholds, values)
    result |= {"page": str(page), "failed": failed, "passed": not failed}
    answer(result, out_file, [*_lines(values), str(page)])
    if failed:  # after the answer: CI wants both the figures and the exit code
        raise ThresholdError("; ".join(failed), "These are the thresholds of --fail-if.")


@dataclass(frozen=True)
class Trial:
    """What every model goes through."""

    videos: list[Path]
    work: Path
    per_video: int
    num_pictures: int
    buckets: tuple[int, ...]
    seed: int
    protocol: str
    network: Network
    cache: Path
    force: bool

    def of(self, name: str, planner: Planner) -> tuple[dict[str, Any], Sets]:
        """Cut, make, reconstruct and measure -> what `measure_model` says and whose it is, and where the clips lie."""
        from svdcli.evaluate.cases import View, spread
        from svdcli.evaluate.model_report import Sets, fitting_protocol, measure_model, num_steps

        sampling, files = planner.sampling, planner.files
        view = View(sampling.num_frames, sampling.fps, sampling.width, sampling.height)
        cases, clips = self._cut(name, files, view)
        firsts = list({case.video: case for case in reversed(cases)}.values())[::-1]
        usual = round(sampling.motion_bucket)
        levels = tuple(sorted({*self.buckets, usual}))
        folder = (
            self.work
            / f"{name}-{_digest(files, replace(sampling, motion_bucket=0.0), self.seed, planner.dtype)}"
        )
        sets = Sets(tuple(cases), tuple(spread(firsts, self.num_pictures)), levels, usual, folder)
        make(sets, planner, self.seed)
        out.say(f"{name}: clips in {folder}")
        chosen = fitting_protocol(self.protocol, view)
        with out.progress("measures", num_steps(sets, chosen)) as bar:
            told = measure_model(
                sets, view, chosen, self.network, _calibration(files), self.cache, self.force,
                lambda text: bar.advance(1, text),
            )  # fmt: skip
        told |= {
            "bundle": files.name,
            "loras": [lora.describe() | {"path": lora.file.path.name} for lora in files.loras],
            "sampling": asdict(sampling),
            "seed": self.seed,
            "clips": clips,
            "fvd": _protocol(chosen, self.network),
            "camera": _camera(sets, files),
        }
        return told, sets

    def _cut(self, name: str, files: BundleFiles, view: View) -> tuple[list[Case], dict[str, Any]]:
        """The cases of the videos that this model never saw, as far as that is known."""
        from svdcli.data.frames import file_stamp
        from svdcli.evaluate.cases import cut_cases, find_held_out
        from svdcli.evaluate.protocols import digest

        chosen, by = find_held_out(self.videos, files.settings.recipe), "that its recipe held out"
        if not chosen:
            chosen, by = self.videos, "of which it is not known whether it saw them in training"
            out.warn(
                f"whether {name} has seen these videos in training is not known: its bundle does not say"
            )
        stamps = sorted([*file_stamp(path, path.parent), str(path.parent.resolve())] for path in chosen)
        folder = self.work / f"clips-{digest([asdict(view), stamps])}"
        with out.progress("clips", len(chosen)) as bar:
            cases, left_out = cut_cases(
                chosen, folder, view, self.per_video, lambda text: bar.advance(1, text)
            )
        for video, why in left_out.items():
            out.warn(f"{video} is left out: {why}")
        if sum(case.real is not None for case in cases) < 2:
            raise InputError(
                f"Fewer than two of {len(chosen)} videos are long enough for {view.num_frames} frames at {view.fps:g} a second.",
                "Give longer videos, or fewer --frames.",
            )
        names = list(dict.fromkeys(case.video for case in cases))
        return cases, {"chosen_by": by, "videos": names, "left_out": left_out}


# ---- making


def make(sets: Sets, planner: Planner, seed: int) -> None:
    """Make what is not there yet: the clips at every bucket, and what the autoencoder makes of real and still ones."""
    from svdcli.cli.making import Run
    from svdcli.engine.memory import Residence
    from svdcli.engine.produce import Job, Writing
    from svdcli.engine.reconstruct import reconstruct
    from svdcli.engine.subjects import Still
    from svdcli.evaluate.cases import is_written, write_clip
    from svdcli.evaluate.videos import read_whole
    from svdcli.io.files import check_writable

    jobs = {
        bucket: [
            Job(Still(case.picture), seed, path)
            for case in (sets.cases if bucket == sets.usual else sets.moved)
            if not is_written(path := sets.made(case, bucket))
        ]
        for bucket in sorted(sets.buckets, key=lambda bucket: bucket != sets.usual)
    }
    coded = [
        (source, case, sets.coded(case, kind))
        for case in sets.cases if case.real is not None
        for kind, source in (("coded", case.real), ("still_coded", case.still))
        if not is_written(sets.coded(case, kind))
    ]  # fmt: skip
    if not coded and not any(jobs.values()):
        return
    check_writable(sets.folder / "made" / "x", parents=True)
    settled = settle(planner, "auto", 1)
    writing = Writing("png", settled.chunk, DEFAULT_OVERLAP)
    for bucket, missing in jobs.items():
        if missing:
            sampling = replace(planner.sampling, motion_bucket=float(bucket))
            out.say(f"{len(missing)} clips at motion {bucket}")
            Run(
                missing, planner.files, sampling, writing, settled.mode, planner.device, planner.dtype, False
            ).here()
    residence = Residence(planner.files, settled.mode, planner.device, planner.dtype)
    with out.progress("autoencoder", len(coded)) as bar:
        for source, case, path in coded:
            frames = reconstruct(residence, read_whole(source)[0], settled.chunk, DEFAULT_OVERLAP)
            write_clip(path, frames, planner.sampling.fps, case)
            bar.advance(1, case.name)


# ---- options


def open_models(texts: Sequence[str]) -> dict[str, BundleFiles]:
    """`[NAME=]REF[+LORA[:STRENGTH]]...` -> bundles by name, LoRAs added. Raises SvdError."""
    found: dict[str, BundleFiles] = {}
    for text in texts or [""]:
        name, files = open_model(text)
        if name in found:
            raise UsageError(
                f"Two models are called {name!r}.", "Name them: ours=nano+a.safetensors theirs=nano"
            )
        found[name] = files
    return found


def open_model(text: str) -> tuple[str, BundleFiles]:
    """One of them. A run folder stands for the bundle, or behind a + for the LoRA, in it."""
    from svdcli.model.bundle import open_bundle

    name, sign, rest = text.partition("=")
    if not sign or Path(text).exists():
        name, rest = "", text
    reference, *loras = rest.split("+") if not Path(rest).exists() else [rest]
    inside = Path(reference) / "bundle"
    files = open_bundle(inside if reference and inside.is_dir() else reference or None)
    files.require_task("i2v")
    files = add_loras(files, [_lora(lora) for lora in loras])
    parts = [Path(reference).resolve().name if inside.is_dir() and reference else files.name]
    parts += [Path(read_lora_option(lora)[0]).stem for lora in loras]
    return name or "+".join(parts), files


def _lora(text: str) -> str:
    """A LoRA as `svd sample --lora` takes it: of a run folder the file in it."""
    path, strength = read_lora_option(text)
    return f"{path / 'lora.safetensors' if path.is_dir() else path}:{strength:g}"


def read_buckets(text: str) -> tuple[int, ...]:
    """ "20,60,127" -> whole numbers, two at least. Raises UsageError."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 1 <= int(part) <= 255 for part in parts) or len(set(parts)) < 2:
        raise UsageError(
            f"--buckets {text} are not two or more whole numbers from 1 to 255.", "Try 20,60,127,200."
        )
    return tuple(sorted({int(part) for part in parts}))


def _planner(files: BundleFiles, asked: dict[str, Any], where: Any, dtype: str | None) -> Planner:
    from svdcli.engine.plan import Planner

    sampling = choose_sampling(files, None, asked)
    return Planner(files, sampling, where, choose_dtype(where, dtype), None, DEFAULT_OVERLAP)


def _digest(files: BundleFiles, sampling: Sampling, seed: int, dtype: Any) -> str:
    """Of all that shapes a clip but picture and bucket: where its clips lie."""
    from svdcli.data.frames import file_stamp
    from svdcli.evaluate.protocols import digest

    stamps = [file_stamp(path, files.path) for path in files.paths()]
    loras = [[file_stamp(lora.file.path, lora.file.path.parent), lora.strength] for lora in files.loras]
    return digest([stamps, loras, asdict(sampling), seed, str(dtype)])


# ---- facts and answers


def _calibration(files: BundleFiles) -> MotionCalibration | None:
    from svdcli.data.motion import MotionCalibration

    knots = files.settings.motion_calibration
    return MotionCalibration.from_knots(knots) if knots else None


def _camera(sets: Sets, files: BundleFiles) -> dict[str, Any] | None:
    """Where a LoRA says that it teaches a camera move: how many of the clips at the usual bucket make it."""
    trigger = next((lora.file.info.trigger for lora in files.loras if lora.file.info.trigger), None)
    if trigger is None:
        return None
    from svdcli.data.camera_class import camera_class, is_right
    from svdcli.evaluate.videos import read_whole

    try:
        right = [is_right(trigger, camera_class(*read_whole(sets.made(case)))[0]) for case in sets.cases]
    except InputError as error:  # it teaches something else
        out.warn(f"camera moves are not judged: {error.message}")
        return None
    return {"asked": trigger, "accuracy": sum(right) / len(right), "num": len(right)}


def _protocol(protocol: Protocol | None, network: Network) -> dict[str, Any] | None:
    if protocol is None:
        return None
    return {"protocol": protocol.name, "network": network.name, "settings": protocol.settings()}


def _command(
    models: Sequence[str] | None, clips: Path, page: Path, asked: dict[str, Any], trial: Trial, draw: Sequence[str] | None
) -> list[str]:  # fmt: skip
    """What makes the same again, as far as it shapes a figure."""
    options = {"--clips": clips, "--page": page, "--frames": asked["num_frames"], "--fps": asked["fps"]}
    options |= {"--steps": asked["num_steps"], "--guidance": asked["guidance"], "--seed": trial.seed}
    options |= {
        "--per-video": trial.per_video,
        "--pictures": trial.num_pictures,
        "--protocol": trial.protocol,
    }
    options |= {"--buckets": ",".join(map(str, trial.buckets))}
    words = [word for key, value in options.items() if value is not None for word in (key, str(value))]
    words += [word for pattern in draw or [] for word in ("--draw", pattern)]
    return ["eval", "model", *(models or []), *words, *(["--force"] if trial.force else [])]


def _lines(values: dict[str, dict[str, float]]) -> list[str]:
    names = list(dict.fromkeys(name for row in values.values() for name in row))
    rows = [
        [name, *(f"{row[name]:.4g}" if name in row else "-" for row in values.values())] for name in names
    ]
    return table(rows, header=["measure", *values])
