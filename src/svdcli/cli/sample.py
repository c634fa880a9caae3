"""`svd sample` and `svd decode`: pictures in, videos out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from svdcli.cli.console import human_size, out, table
from svdcli.errors import MachineError, UsageError

if TYPE_CHECKING:
    import torch

    from svdcli.engine.generate import Sampling
    from svdcli.engine.memory import Residence
    from svdcli.engine.plan import Plan
    from svdcli.engine.produce import Clip, Job
    from svdcli.model.bundle import BundleFiles

Fit = StrEnum("Fit", ["crop", "pad", "stretch"])
Kind = StrEnum("Kind", ["mp4", "gif", "webp", "png", "latents"])
Sampler = StrEnum("Sampler", ["euler", "heun", "euler_ancestral", "dpmpp_2m"])
Precision = StrEnum("Precision", ["float32", "float16", "bfloat16"])
Vram = StrEnum("Vram", ["auto", "high", "normal", "low", "none"])

HELP_BUNDLE = "Name (svd, svd-xt, svd-xt-1.1, nano), folder, .safetensors or hub id; else the best one here."
HELP_VRAM = "Where weights live: all resident, one part at a time, streamed from the host, streamed from the file."


def register(app: typer.Typer) -> None:
    app.command()(sample)
    app.command()(decode)


def sample(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Pictures, folders or globs.")],
    bundle: Annotated[str | None, typer.Option("--bundle", "-b", metavar="REF", help=HELP_BUNDLE)] = None,
    output: Annotated[str | None, typer.Option("--output", "-o", metavar="PATH", help="A file, a folder, or a template with {name} {seed} {index} {bundle}.")] = None,
    kind: Annotated[Kind | None, typer.Option("--format", help="What to write; else by the suffix of --output, else mp4.")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Frames of the clip; else the bundle's own.")] = None,
    fps: Annotated[float | None, typer.Option(help="Frames a second, of the model and of the file.")] = None,
    motion: Annotated[float | None, typer.Option(help="Motion bucket, 1 (still) to 255; 127 is usual.")] = None,
    augment: Annotated[float | None, typer.Option(help="Noise on the input picture (σ); more frees the motion.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps.")] = None,
    sampler: Annotated[Sampler | None, typer.Option(help="Solver.")] = None,
    schedule: Annotated[str, typer.Option(help="karras, exponential, uniform, or noise levels such as 700,100,10,1.")] = "karras",
    guidance: Annotated[str | None, typer.Option(metavar="SCALE", help="2.0, 1.0:2.5 over the frames, or triangle:1.0:2.5.")] = None,
    churn: Annotated[float, typer.Option(help="Stochasticity of euler and heun (EDM's S_churn).")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Pins all noise, that of --augment too.")] = 23,
    count: Annotated[int, typer.Option(min=1, help="Clips a picture, of successive seeds.")] = 1,
    rank: Annotated[bool, typer.Option("--rank", help="Score the clips of each picture, best first, with a contact sheet.")] = False,
    size: Annotated[str | None, typer.Option(metavar="WxH", help="Size in pixels; else the bundle's, turned for portraits.")] = None,
    fit: Annotated[Fit, typer.Option(help="How a picture of another aspect fits the size.")] = Fit.crop,
    dtype: Annotated[Precision | None, typer.Option(help="Precision; else float16 on a GPU, float32 on a CPU.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    devices: Annotated[int, typer.Option(min=1, help="Spread the clips over so many devices.")] = 1,
    vram: Annotated[Vram, typer.Option(help=HELP_VRAM)] = Vram.auto,
    decode_chunk: Annotated[int | None, typer.Option(min=1, help="Frames decoded at a time; fewer need less memory.")] = None,
    decode_overlap: Annotated[int, typer.Option(min=0, help="Frames that neighbouring chunks share and blend.")] = 2,
    preview: Annotated[bool, typer.Option("--preview", help="Keep a cheap picture of the clip beside it while it is made.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Print the predicted memory by stage, and run nothing.")] = False,
) -> None:  # fmt: skip
    """Turn pictures into videos."""
    from svdcli.io.images import find_pictures
    from svdcli.model.bundle import open_bundle

    for name, value, low, high in (
        ("--fps", fps, 0.0, 240.0), ("--motion", motion, 0.0, 1023.0), ("--augment", augment, -1e-9, 100.0),
        ("--churn", churn, -1e-9, 1e6),
    ):  # fmt: skip
        check_number(name, value, low, high)
    chosen_kind = choose_kind(kind, output)
    if rank and (count < 2 or chosen_kind == "latents"):
        raise UsageError("--rank compares the clips of one picture, so it needs --count 2 or more, decoded", "Add --count 4.")
    pictures = find_pictures(images)
    files = open_bundle(bundle)
    files.require_task("i2v")
    sampling = choose_sampling(files, size, {
        "num_frames": frames, "fps": fps, "motion_bucket": motion, "augment": augment, "num_steps": steps,
        "sampler": sampler and sampler.value, "schedule": schedule, "guidance": guidance, "s_churn": churn,
    })  # fmt: skip
    from svdcli.engine.produce import Job, Writing
    from svdcli.io.template import output_paths

    seeds = list(range(seed, seed + count))
    where, precision = choose_device(device), dtype and dtype.value
    if plan:
        print_plans(files, sampling, decode_chunk, where, precision)
        return
    paths = output_paths(output, pictures, seeds, chosen_kind, Path("."), bundle=files.name, overwrite=overwrite)
    jobs = [Job(*job) for job in zip([p for p in pictures for _ in seeds], seeds * len(pictures), paths, strict=True)]
    writing = Writing(chosen_kind, fit.value, size is None, decode_chunk, decode_overlap, preview)  # type: ignore[arg-type]
    check_outputs(jobs)
    residence = settle(files, sampling, decode_chunk, where, precision, vram.value, devices)
    warn_unusual(files, sampling)
    clips = run(jobs, residence, sampling, writing, devices)
    ranking = rank_clips(clips) if rank else []
    answer(clips, ranking)


def decode(
    latents: Annotated[Path, typer.Argument(metavar="LATENTS", help="A .safetensors file that `svd sample` wrote.")],
    bundle: Annotated[str | None, typer.Option("--bundle", "-b", metavar="REF", help="The bundle that made them; else as they say.")] = None,
    output: Annotated[str | None, typer.Option("--output", "-o", metavar="PATH", help="A file or a folder.")] = None,
    kind: Annotated[Kind | None, typer.Option("--format", help="mp4, gif, webp or png.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    dtype: Annotated[Precision | None, typer.Option(help="Precision; else float16 on a GPU, float32 on a CPU.")] = None,
    decode_chunk: Annotated[int | None, typer.Option(min=1, help="Frames decoded at a time; fewer need less memory.")] = None,
    decode_overlap: Annotated[int, typer.Option(min=0, help="Frames that neighbouring chunks share and blend.")] = 2,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
) -> None:  # fmt: skip
    """Turn saved latents into a video: what is left of a `svd sample` whose decode failed."""
    from svdcli.engine.memory import Residence
    from svdcli.engine.produce import Job, Writing, finish, read_latents
    from svdcli.io.template import output_paths
    from svdcli.model.bundle import open_bundle

    chosen_kind = choose_kind(kind, output)
    if chosen_kind == "latents":
        raise UsageError("latents are what svd decode reads", "Choose mp4, gif, webp or png.")
    _, manifest = read_latents(latents)
    files = open_bundle(bundle or manifest.get("bundle"))
    name = Path(latents.name.removesuffix(".safetensors").removesuffix(".latents"))
    default = output or str(latents.with_name(name.name + (f".{chosen_kind}" if chosen_kind != "png" else "")))
    path = output_paths(default, [name], [manifest.get("seed", 0)], chosen_kind, Path("."), overwrite=overwrite)[0]
    check_outputs([Job(latents, 0, path)])
    where = choose_device(device)
    residence = Residence(files, "normal", where, choose_dtype(where, dtype and dtype.value))
    writing = Writing(chosen_kind, chunk=decode_chunk, overlap=decode_overlap)
    with Watcher.over(1, 0) as watcher:
        clip = finish(latents, path, residence, writing, watcher)
    answer([clip], [])


# ---- what was asked


def check_number(name: str, value: float | None, low: float, high: float) -> None:
    """Raise UsageError for NaN, infinity and what lies outside (low, high]."""
    if value is not None and not (math.isfinite(value) and low < value <= high):
        raise UsageError(f"{name} {value:g} is not between {max(low, 0.0):g} and {high:g}", "See svd sample --help.")


def choose_kind(kind: Kind | None, output: str | None) -> str:
    from svdcli.io.template import kind_of

    return kind.value if kind else kind_of(output) or "mp4"


def choose_sampling(files: BundleFiles, size: str | None, given: dict[str, Any]) -> Sampling:
    """The bundle's own values, with those that were given in their place; all of them checked."""
    from svdcli.engine.generate import Sampling

    sampling = replace(Sampling.of(files.settings), **{name: value for name, value in given.items() if value is not None})
    if size is not None:
        width, height = read_size(size)
        sampling = replace(sampling, width=width, height=height)
    multiple = 2 ** (len(files.configs["vae"]["block_out_channels"]) - 1)
    if sampling.width % multiple or sampling.height % multiple:
        near = [max(multiple, round(side / multiple) * multiple) for side in (sampling.width, sampling.height)]
        raise UsageError(
            f"the sides of {sampling.width}x{sampling.height} are not multiples of {multiple}", f"Use --size {near[0]}x{near[1]}."
        )
    if sampling.s_churn and sampling.sampler not in ("euler", "heun"):
        raise UsageError(f"--churn is not for the sampler {sampling.sampler}", "Use --sampler euler or heun.")
    sampling.sigmas(), sampling.scales()
    return sampling


def read_size(text: str) -> tuple[int, int]:
    width, sign, height = text.lower().partition("x")
    if not (sign and width.isdigit() and height.isdigit() and 64 <= min(int(width), int(height))):
        raise UsageError(f"--size {text} is not WIDTHxHEIGHT in pixels, 64 or more", "Write for example --size 1024x576.")
    return int(width), int(height)


def choose_device(name: str) -> torch.device:
    """The device of that name, or the best one. Raises MachineError where it is absent."""
    import torch

    if name == "auto":
        mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"there is no kind of device {name}", "Use auto, cpu, cuda, cuda:1 or mps.") from error
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    missing = not here.get(device.type, False)
    if missing or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        raise MachineError(f"this machine has no device {name}", "Use --device auto; `svd doctor` shows what there is.")
    return device


def choose_dtype(device: torch.device, name: str | None) -> torch.dtype:
    import torch

    return getattr(torch, name or ("float32" if device.type == "cpu" else "float16"))


def check_outputs(jobs: list[Job]) -> None:
    """Every output can be written, before any work starts."""
    from svdcli.io.files import check_writable

    for job in jobs:
        check_writable(job.output, parents=True)


def warn_unusual(files: BundleFiles, sampling: Sampling) -> None:
    """Say where the request lies outside what the model was trained on."""
    native = files.settings
    if sampling.num_frames != native.num_frames and not (files.name == "nano" and 14 <= sampling.num_frames <= 25):
        out.warn(f"{files.name} was trained on {native.num_frames} frames; {sampling.num_frames} may drift or stall")
    if sampling.width * sampling.height != native.width * native.height:
        out.warn(f"{files.name} was trained at {native.width}x{native.height}; {sampling.width}x{sampling.height} may look worse")


# ---- where it runs


def settle(
    files: BundleFiles, sampling: Sampling, chunk: int | None, device: torch.device, dtype: str | None, vram: str, devices: int,
) -> Residence:  # fmt: skip
    """Choose the memory mode, say which, and make the place for the weights."""
    from svdcli.engine.memory import Residence
    from svdcli.engine.plan import choose, free_bytes, make_plans

    precision = choose_dtype(device, dtype)
    plans = make_plans(files, sampling, chunk, device, precision)
    free = free_bytes(device) // (devices if device.type == "cpu" else 1)
    plan = choose(plans, free) if vram == "auto" else next(p for p in plans if p.mode == vram)
    out.say(
        f"{files.name} on {device} in {str(precision).removeprefix('torch.')}, memory mode {plan.mode}: "
        f"about {human_size(plan.peak)} of {human_size(free)} free"
    )
    return Residence(files, plan.mode, device, precision)


def print_plans(files: BundleFiles, sampling: Sampling, chunk: int | None, device: torch.device, dtype: str | None) -> None:
    from svdcli.engine.plan import choose, free_bytes, make_plans

    plans = make_plans(files, sampling, chunk, device, choose_dtype(device, dtype))
    free = free_bytes(device)
    try:
        chosen = choose(plans, free).mode
    except MachineError:
        chosen = None
    stages = list(plans[0].stages)
    rows = [[("* " if p.mode == chosen else "  ") + p.mode, *(human_size(p.stages[s]) for s in stages), human_size(p.peak)] for p in plans]
    data = {"bundle": files.name, "device": str(device), "free": free, "chosen": chosen, "sampling": vars(sampling),
            "modes": {p.mode: {"stages": p.stages, "peak": p.peak} for p in plans}}  # fmt: skip
    out.result(data, [*table(rows, header=("  mode", *stages, "peak")), f"free on {device}: {human_size(free)}"])


# ---- running


class Watcher:
    """Shows the progress of all clips as one bar: a unit a step, and a unit a decoded frame's share of a step."""

    def __init__(self, bar: Any, num_jobs: int) -> None:
        self.bar, self.num_jobs, self.done, self.decoded = bar, num_jobs, 0, 0

    @classmethod
    @contextmanager
    def over(cls, num_jobs: int, num_steps: int) -> Iterator[Watcher]:
        with out.progress("sample" if num_steps else "decode", num_jobs * (num_steps + DECODE_UNITS)) as bar:
            yield cls(bar, num_jobs)

    def begin(self, job: Job, num_steps: int) -> None:
        self.done, self.decoded = self.done + 1, 0

    def step(self, job: Job, info: Any) -> None:
        self.bar.advance(1, note=f"{job.source.name} ({self.done}/{self.num_jobs}) step {info.index + 1}/{info.total}")

    def frames(self, job: Job, done: int, total: int) -> None:
        units, self.decoded = DECODE_UNITS * (done - self.decoded) / total, done
        self.bar.advance(units, note=f"{job.source.name} ({self.done}/{self.num_jobs}) decoded {done}/{total}")

    def note(self, text: str) -> None:
        out.say(f"note: {text}")


DECODE_UNITS = 4
"""How many steps a decode counts as in the progress bar."""


def run(jobs: list[Job], residence: Residence, sampling: Sampling, writing: Any, devices: int) -> list[Clip]:
    """Make the clips here, or each rank its share."""
    from svdcli.engine.produce import produce

    num_steps = len(sampling.sigmas()) - 1
    if devices == 1:
        with Watcher.over(len(jobs), num_steps) as watcher:
            return produce(jobs, residence, sampling, writing, watcher)
    from svdcli.engine.launch import spread

    fabric = spread(residence.device.type, devices)
    residence.device = fabric.device
    share = jobs[fabric.global_rank :: devices]
    with Watcher.over(len(share), num_steps) as watcher:
        clips = produce(share, residence, sampling, writing, watcher)
    return gathered(fabric, clips)


def gathered(fabric: Any, clips: list[Clip]) -> list[Clip]:
    """All ranks' clips in every rank, in the order of the jobs."""
    import torch.distributed

    everyone: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(everyone, clips)
    depth = max(map(len, everyone))
    return [part[i] for i in range(depth) for part in everyone if i < len(part)]


def rank_clips(clips: list[Clip]) -> list[dict[str, Any]]:
    """Score the clips of each picture, best first, and write a contact sheet beside the best."""
    from svdcli.evaluate.rank import rank_by_quality
    from svdcli.io.images import write_png
    from svdcli.io.sheet import contact_sheet

    ranking = []
    for source in dict.fromkeys(clip.job.source for clip in clips):
        of_source = [clip for clip in clips if clip.job.source == source]
        scores = rank_by_quality([(clip.frames, clip.picture, clip.manifest["fps"]) for clip in of_source])
        ordered = [(of_source[score.index], score) for score in scores]
        sheet = ordered[0][0].job.output.with_name(f"{source.stem}.ranking.png")
        titles = [f"{place + 1}. seed {c.job.seed}  {s.summary}" for place, (c, s) in enumerate(ordered)]
        write_png(sheet, contact_sheet([c.frames for c, _ in ordered], titles))
        ranking.append({"source": str(source), "sheet": str(sheet), "clips": [
            {"output": str(c.job.output), "seed": c.job.seed, **s.figures} for c, s in ordered]})  # fmt: skip
    return ranking


def answer(clips: list[Clip], ranking: list[dict[str, Any]]) -> None:
    lines = [str(clip.job.output) for clip in clips]
    if ranking:
        lines = [line for group in ranking for line in [*(c["output"] for c in group["clips"]), group["sheet"]]]
    out.result({"clips": [clip.manifest for clip in clips], "ranking": ranking}, lines)
