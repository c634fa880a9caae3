"""`svd sample` and `svd decode`: pictures in, videos out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from svdcli.cli.between import Wanted, refuse, sample_between
from svdcli.cli.choices import (
    DEFAULT_OVERLAP,
    ChunkOption,
    DeviceOption,
    Fit,
    Kind,
    LoraOption,
    OverlapOption,
    OverwriteOption,
    PrecisionOption,
    Sampler,
    Vram,
    add_loras,
    check_folders,
    check_new,
    check_number,
    check_pictures,
    choose_device,
    choose_dtype,
    choose_kind,
    choose_sampling,
    print_plans,
    settle,
    warn_unusual,
)
from svdcli.cli.console import out
from svdcli.cli.making import Made, Run, Watcher, index_path, rank_clips, read_index, sheet_path, write_index
from svdcli.cli.orbit import (
    Around,
    CutoutOption,
    ElevationOption,
    OrbitOption,
    PathOption,
    PointsOption,
    ViewsOption,
    sample_orbit,
)
from svdcli.cli.painting import choose_painter, painted, picture_paths
from svdcli.errors import UsageError

if TYPE_CHECKING:
    from svdcli.engine.produce import Job
    from svdcli.engine.subjects import Continued, Subject
    from svdcli.model.bundle_files import BundleFiles

HELP_BUNDLE = "Name (svd, svd-xt, svd-xt-1.1, nano), folder, .safetensors or hub id; else the best one here."
HELP_IMAGES = "Pictures, folders or globs; with --interpolate clips too."
HELP_PROMPT = (
    "Words instead of a picture, for a text-to-video or an image bundle; may be given several times."
)
HELP_PAINTER = (
    "A text-to-image model that diffusers loads (folder or hub id): it paints the prompt, which then moves."
)
HELP_INTERPOLATE = (
    "Find the frames between pictures, or between those of a clip; needs an interpolation bundle."
)
HELP_CONTINUE = "Go on from the last frames of clips; what is written begins behind them."
HELP_MASK = "White where the picture may move, black where it is held still; of the picture's shape."
HELP_OUTPUT = "A file, a folder, or a template with {name} {seed} {index} {bundle}."
HELP_WINDOW = (
    "Frames that the network sees at once; a longer clip goes on window by window. Else as it was trained."
)
HELP_SCHEDULE = "karras, exponential, uniform, or noise levels such as 700,100,10,1."
HELP_TEMPERATURE = "Of the noise it starts from: 1 is the model's own spread, less is cleaner and moves less."
HELP_DETAIL = (
    "Carry the picture's own pixels along the clip's motion into the decoded frames; else as the bundle says."
)
HELP_RANK = "Score the clips of each picture, best first, with a contact sheet."
HELP_VRAM = (
    "Weights all resident (high), a part at a time (normal), streamed from the host (low) or file (none)."
)


def register(app: typer.Typer) -> None:
    app.command()(sample)
    app.command()(decode)


def sample(
    images: Annotated[list[str] | None, typer.Argument(metavar="IMAGE...", help=HELP_IMAGES)] = None,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", metavar="TEXT", help=HELP_PROMPT)] = None,
    negative: Annotated[str, typer.Option(metavar="TEXT", help="What a prompt's guidance leads away from.")] = "",
    image_model: Annotated[str | None, typer.Option(metavar="REF", help=HELP_PAINTER)] = None,
    image_steps: Annotated[int | None, typer.Option(min=1, help="Steps of the image model; else its own.")] = None,
    image_guidance: Annotated[float | None, typer.Option(help="Guidance of the image model; else its own.")] = None,
    bundle: Annotated[str | None, typer.Option("--bundle", "-b", metavar="REF", help=HELP_BUNDLE)] = None,
    lora: LoraOption = None,
    output: Annotated[str | None, typer.Option("--output", "-o", metavar="PATH", help=HELP_OUTPUT)] = None,
    kind: Annotated[Kind | None, typer.Option("--format", help="Else by the suffix of --output, or mp4.")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Frames of the clip; else the bundle's own.")] = None,
    window: Annotated[int | None, typer.Option(min=2, help=HELP_WINDOW)] = None,
    fps: Annotated[float | None, typer.Option(help="Frames a second, of the model and of the file.")] = None,
    motion: Annotated[float | None, typer.Option(help="Motion bucket, 1 (still) to 255; 127 is usual.")] = None,
    augment: Annotated[float | None, typer.Option(help="Noise on the picture (σ); more frees the motion.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps.")] = None,
    sampler: Annotated[Sampler | None, typer.Option(help="Solver.")] = None,
    schedule: Annotated[str, typer.Option(help=HELP_SCHEDULE)] = "karras",
    guidance: Annotated[str | None, typer.Option(metavar="SCALE", help="2.0, 1.0:2.5 or triangle:1.0:2.5.")] = None,
    churn: Annotated[float, typer.Option(help="Stochasticity of euler and heun (EDM's S_churn).")] = 0.0,
    temperature: Annotated[float | None, typer.Option(help=HELP_TEMPERATURE)] = None,
    carry_detail: Annotated[bool | None, typer.Option(help=HELP_DETAIL)] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63, help="Pins all noise, that of --augment too.")] = 23,
    count: Annotated[int, typer.Option(min=1, help="Clips of a picture, with successive seeds.")] = 1,
    continue_: Annotated[bool, typer.Option("--continue", help=HELP_CONTINUE)] = False,
    motion_mask: Annotated[Path | None, typer.Option(metavar="PICTURE", help=HELP_MASK)] = None,
    interpolate: Annotated[bool, typer.Option("--interpolate", help=HELP_INTERPOLATE)] = False,
    rank: Annotated[bool, typer.Option("--rank", help=HELP_RANK)] = False,
    size: Annotated[str | None, typer.Option(metavar="WxH", help="Else the bundle's, turned for portraits.")] = None,
    fit: Annotated[Fit, typer.Option(help="How a picture of another aspect fits the size.")] = Fit.crop,
    dtype: PrecisionOption = None,
    device: DeviceOption = "auto",
    devices: Annotated[int, typer.Option(min=1, help="Spread the clips over so many devices.")] = 1,
    vram: Annotated[Vram, typer.Option(help=HELP_VRAM)] = Vram.auto,
    decode_chunk: ChunkOption = None,
    decode_overlap: OverlapOption = None,
    preview: Annotated[bool, typer.Option("--preview", help="Show the clip in a picture as it is made.")] = False,
    overwrite: OverwriteOption = False,
    plan: Annotated[bool, typer.Option("--plan", help="Print the predicted memory, and run nothing.")] = False,
    orbit: OrbitOption = False,
    elevation: ElevationOption = None,
    views: ViewsOption = None,
    path: PathOption = None,
    cutout: CutoutOption = None,
    points: PointsOption = True,
) -> None:  # fmt: skip
    """Turn pictures, or words, into videos."""
    from svdcli.io.template import output_paths

    check_number("--fps", fps, 0.1, 240)
    check_number("--motion", motion, 0, 1023)
    check_number("--augment", augment, 0, 100)
    check_number("--churn", churn, 0, 1e6)
    check_number("--temperature", temperature, 0, 2)
    asked = {
        "num_frames": frames, "window": window, "fps": fps, "motion_bucket": motion, "augment": augment,
        "num_steps": steps, "sampler": sampler and sampler.value, "schedule": schedule, "guidance": guidance, "s_churn": churn,
        "temperature": temperature, "carry_detail": carry_detail,
    }  # fmt: skip
    around = Around(elevation, views, path, cutout, points)
    wanted = Wanted(
        images or [], bundle, output, kind, size, fit, seed, motion, asked, dtype, device, vram, overwrite, plan
    )  # fmt: skip
    if orbit:
        refuse({
            "--prompt": prompt, "--lora": lora, "--count": count > 1, "--rank": rank, "--devices": devices > 1,
            "--preview": preview, "--window": window, "--decode-chunk": decode_chunk, "--decode-overlap": decode_overlap,
            "--interpolate": interpolate, "--frames": frames, "--motion": motion, "--size": size,
            "--continue": continue_, "--motion-mask": motion_mask, "--image-model": image_model, "--carry-detail": carry_detail,
        }, "--orbit")  # fmt: skip
        return sample_orbit(wanted, around)
    around.refuse()
    if interpolate:
        refuse({
            "--prompt": prompt, "--lora": lora, "--count": count > 1, "--rank": rank, "--devices": devices > 1,
            "--preview": preview, "--window": window, "--decode-chunk": decode_chunk, "--decode-overlap": decode_overlap,
            "--continue": continue_, "--motion-mask": motion_mask, "--image-model": image_model,
        })  # fmt: skip
        return sample_between(wanted)
    chosen_kind = choose_kind(kind, output) or "mp4"
    check_number("--image-guidance", image_guidance, 0, 100)
    if rank and (count == 1 or chosen_kind == "latents" or (prompt and not image_model)):
        raise UsageError("--rank compares several decoded clips of one picture", "Add --count 4, as a video.")
    if carry_detail and prompt and not image_model:
        raise UsageError("--carry-detail carries a picture's detail, and words have none", "Leave it out.")
    if motion_mask and (prompt or continue_):
        raise UsageError("--motion-mask says what of a picture moves", "Give it with pictures alone.")
    if continue_:
        subjects: list[Subject] = list(
            find_clips(images or [], prompt, fit, size is None, motion is not None)
        )
    else:
        subjects = find_subjects(images or [], prompt or [], negative, fit, size is None, motion_mask)

    from svdcli.engine.plan import Planner
    from svdcli.engine.produce import Job, Writing
    from svdcli.model.bundle import open_bundle

    painter = choose_painter(image_model, prompt or [], image_steps, image_guidance, negative, devices)
    files = open_bundle(bundle)
    files.require_task(*(("t2v", "image") if prompt and painter is None else ("i2v",)))
    files = add_loras(files, lora or [])
    if continue_:
        subjects, asked["num_frames"] = going_on(subjects, files, frames)
    sampling = choose_sampling(files, size, asked)
    where = choose_device(device, devices)
    overlap = DEFAULT_OVERLAP if decode_overlap is None else decode_overlap
    planner = Planner(files, sampling, where, choose_dtype(where, dtype), decode_chunk, overlap)
    if plan:
        return print_plans(planner)
    seeds = list(range(seed, seed + count))
    sources = [subject.source for subject in subjects]
    paths = output_paths(output, sources, seeds, chosen_kind, ".", bundle=files.name, overwrite=overwrite)
    jobs = [Job(*each, path) for each, path in zip(product(subjects, seeds), paths, strict=True)]
    check_outputs(jobs, rank, preview, overwrite, list(picture_paths(jobs).values()) if painter else [])
    settled = settle(planner, vram, devices)
    warn_unusual(files, sampling)
    writing = Writing(chosen_kind, settled.chunk, overlap, preview)
    if painter is not None:
        jobs = painted(jobs, painter, fit, (sampling.width, sampling.height), where, planner.dtype)
    run = Run(jobs, files, sampling, writing, settled.mode, where, planner.dtype, rank)
    made = run.on(min(devices, len(jobs))) if min(devices, len(jobs)) > 1 else run.here()
    answer(made, rank_clips(made) if rank else [])


def find_subjects(
    images: Sequence[str], prompts: Sequence[str], negative: str, fit: Fit, turn: bool,
    mask: Path | None = None,
) -> list[Subject]:  # fmt: skip
    """What the clips are made from, all of it read once, so that a bad third one does not come out after two clips."""
    from svdcli.engine.subjects import Prompt, Still
    from svdcli.io.images import find_pictures

    if prompts and images:
        raise UsageError("a clip is made from a picture or from words, not from both", "Give one of them.")
    if not all(text.strip() for text in prompts):
        raise UsageError("--prompt is empty", 'Say what is to be seen: --prompt "a boat at sea".')
    if prompts:
        return [Prompt(text, negative) for text in prompts]
    pictures = find_pictures(images)
    check_pictures(pictures)
    how = cast("Literal['crop', 'pad', 'stretch']", fit.value)
    if mask is not None:
        check_pictures([mask])
    return [Still(picture, how, turn, mask) for picture in pictures]


def find_clips(
    clips: Sequence[str], prompts: Sequence[str] | None, fit: Fit, turn: bool, motion_asked: bool
) -> list[Continued]:
    """The clips that are to go on, all of them opened once."""
    from svdcli.engine.subjects import Continued
    from svdcli.io.timed import open_timed

    if prompts or not clips:
        raise UsageError("--continue goes on from clips", "Give one: svd sample clip.mp4 --continue")
    how = cast("Literal['crop', 'pad', 'stretch']", fit.value)
    return [Continued(open_timed(clip).path, 1, how, turn, motion_asked) for clip in clips]


def going_on(
    clips: Sequence[Subject], files: BundleFiles, frames: int | None
) -> tuple[list[Subject], int | None]:
    """The clips with as many known frames as the bundle wants, and the frames of known and new ones together."""
    from svdcli.engine.subjects import KNOWN, Continued

    count = files.settings.leading or KNOWN
    found: list[Subject] = [replace(clip, count=count) for clip in clips if isinstance(clip, Continued)]
    total = None if frames is None else frames + count
    new = (total or files.settings.num_frames) - count
    out.say(f"{new} frames behind the last {count} of {', '.join(clip.name for clip in clips)}")
    return found, total


def decode(
    latents: Annotated[Path, typer.Argument(metavar="LATENTS", help="A file that `svd sample` wrote.")],
    bundle: Annotated[str | None, typer.Option("--bundle", "-b", metavar="REF", help="Else as they say.")] = None,
    output: Annotated[str | None, typer.Option("--output", "-o", metavar="PATH", help="A file or folder.")] = None,
    kind: Annotated[Kind | None, typer.Option("--format", help="mp4, gif, webp or png.")] = None,
    dtype: PrecisionOption = None,
    device: DeviceOption = "auto",
    decode_chunk: ChunkOption = None,
    decode_overlap: OverlapOption = None,
    overwrite: OverwriteOption = False,
) -> None:  # fmt: skip
    """Turn saved latents into a video: what is left of a `svd sample` whose decode failed."""
    from svdcli.engine.memory import Residence
    from svdcli.engine.produce import Writing, finish, read_latents
    from svdcli.io.template import SUFFIXES, output_paths
    from svdcli.model.bundle import open_bundle

    if choose_kind(kind, output) == "latents":
        raise UsageError("latents are what svd decode reads", "Choose mp4, gif, webp or png.")
    undecoded, bundle_path = read_latents(latents)
    manifest = undecoded.manifest
    asked = choose_kind(kind, output) or manifest.get("format")
    chosen_kind = asked if asked in SUFFIXES and asked != "latents" else "mp4"
    known_path = bundle_path if bundle_path and Path(bundle_path).exists() else manifest.get("bundle")
    files = open_bundle(bundle or known_path)
    files.require_task("i2v", "t2v", "image", "multiview")
    seed, source = int(manifest.get("seed", 0)), Path(str(manifest.get("source", latents)))
    if output is None:
        stem = latents.name.removesuffix(".safetensors").removesuffix(".latents")
        path = latents.with_name(stem + SUFFIXES[chosen_kind])
        check_new([] if overwrite else [path])
    else:
        path = output_paths(output, [source], [seed], chosen_kind, ".", overwrite=overwrite)[0]
    check_folders([path])
    where = choose_device(device)
    residence = Residence(files, "normal", where, choose_dtype(where, dtype))
    chunk = decode_chunk or manifest.get("decode_chunk") or len(undecoded.latents)
    overlap = manifest.get("decode_overlap", DEFAULT_OVERLAP) if decode_overlap is None else decode_overlap
    with Watcher.over(1, 0, 1) as watcher:
        clip = finish(latents, path, residence, Writing(chosen_kind, chunk, overlap), watcher)
    answer([Made(clip.job, clip.manifest)], [])


def check_outputs(
    jobs: Sequence[Job], rank: bool, preview: bool, overwrite: bool, others: Sequence[Path] = ()
) -> None:
    """Every file that the run will write can be written, and replaces none that it should not."""
    from svdcli.engine.produce import latents_path, preview_path
    from svdcli.io.manifest import sidecar_path

    beside = [latents_path(job.output) for job in jobs]
    beside += [sidecar_path(job.output) for job in jobs]
    beside += [preview_path(job.output) for job in jobs if preview]
    beside += [*(sheet_path([job]) for job in jobs if rank), *others]
    if len(set(beside)) < len(beside):
        raise UsageError(
            "the names of several outputs differ only behind a dot", "Use - in the template instead."
        )
    if not overwrite:
        check_new(beside)
    if (index := index_path(jobs)) is not None:
        read_index(index)
    check_folders([job.output for job in jobs])


def answer(made: Sequence[Made], ranking: Sequence[dict[str, Any]]) -> None:
    """Write the manifest of a run of several clips, and say what was made, best first."""
    index = index_path([m.job for m in made])
    if index is not None:
        write_index(index, made, ranking)
    lines = [str(m.job.output) for m in made]
    if ranking:
        lines = [
            line for group in ranking for line in [*(c["output"] for c in group["clips"]), group["sheet"]]
        ]
    out.result({"clips": [m.manifest for m in made], "ranking": ranking, "manifest": index}, lines)
    if made[0].manifest["format"] == "latents":
        from svdcli.engine.produce import decode_command

        out.next(decode_command(made[0].job.output))
