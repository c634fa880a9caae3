"""svdcli beside diffusers: the same random weights and settings, on one machine, in one run.

    python tests/benchmarks/bench_diffusers.py [nano] [mid] [--full] [--repeats N] [--threads N]

What it is: the time of a UNet step, of a decode and of the whole pipeline, and the peak memory of each, the two sides in
processes of their own and in turn (A B A B), as each is used: svdcli has PyTorch ask for large pages, which diffusers leaves
alone. `time` is how many times faster svdcli is; `memory` is svdcli's peak as a share of diffusers'. `--full` adds SVD's own 1.5
billion weights, stored in half precision, one UNet step in each memory mode.
What it is not: a test of equality, which tests/model holds; here only the largest difference is shown.

This process stays small and imports neither side, as a child's peak begins with what its parent holds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from processes import peak_mib, run_job

SIDES = ("svdcli", "diffusers")
WHAT = ("unet", "decode", "pipeline")
ROUNDS = 2


@dataclass(frozen=True)
class Case:
    """A shape of bundle and the clip that it makes."""

    widths: tuple[int, ...]
    heads: tuple[int, ...]
    attends: tuple[bool, ...]
    layers: int
    context: int
    vae_widths: tuple[int, ...]
    latent_channels: int
    num_frames: int
    width: int
    height: int
    groups: int = 32
    num_steps: int = 4

    @property
    def downscale(self) -> int:
        return 2 ** (len(self.vae_widths) - 1)

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """(T, c, h, w)"""
        return (
            self.num_frames,
            self.latent_channels,
            self.height // self.downscale,
            self.width // self.downscale,
        )


CASES = {
    # The embedded bundle, as recipes/nano has it.
    "nano": Case((96, 128), (3, 4), (False, True), 1, 64, (32, 48, 64, 128), 16, 25, 256, 144, groups=8),
    "mid": Case((128, 256, 256), (2, 4, 4), (True, True, False), 1, 256, (32, 64, 128, 128), 4, 14, 384, 256),
}
FULL = Case(
    (320, 640, 1280, 1280),
    (5, 10, 20, 20),
    (True, True, True, False),
    2,
    1024,
    (32, 32, 64, 64),
    4,
    14,
    192,
    128,
)


# ---- in the children: the random bundle ----------------------------------------------------------------


def unet_config(case: Case) -> dict[str, Any]:
    down = [f"{'CrossAttn' * attends}DownBlockSpatioTemporal" for attends in case.attends]
    up = [f"{'CrossAttn' * attends}UpBlockSpatioTemporal" for attends in reversed(case.attends)]
    ids_width = 256 if case is FULL else 64
    return {
        "in_channels": 2 * case.latent_channels,
        "out_channels": case.latent_channels,
        "block_out_channels": case.widths,
        "down_block_types": tuple(down),
        "up_block_types": tuple(up),
        "num_attention_heads": case.heads,
        "layers_per_block": case.layers,
        "cross_attention_dim": case.context,
        "addition_time_embed_dim": ids_width,
        "projection_class_embeddings_input_dim": 3 * ids_width,
        "num_frames": case.num_frames,
        "norm_num_groups": case.groups,
    }


def make_bundle(case: Case, folder: Path) -> None:
    """Random weights in svdcli's own folder layout, which is diffusers', one tensor in memory at a time.

    Those of the full size are stored in half precision, as the published ones are.
    """
    import torch
    from transformers import CLIPVisionConfig

    from svdcli.model.image_encoder import ImageEncoder
    from svdcli.model.saving import Part, config_of, part_of, save_bundle
    from svdcli.model.settings import Settings
    from svdcli.model.unet import UNet, UNetConfig
    from svdcli.model.vae import VAE, VAEConfig
    from svdcli.model.weights import ToWrite

    torch.manual_seed(0)
    with torch.device("meta"):
        unet = UNet(UNetConfig(**unet_config(case)))
    dtype = torch.float16 if case is FULL else torch.float32

    def draw(name: str, shape: torch.Size) -> torch.Tensor:
        if len(shape) > 1:
            return torch.randn(shape) / shape[1:].numel() ** 0.5
        return torch.ones(shape) if "norm" in name and name.endswith("weight") else torch.zeros(shape)

    tensors = {
        name: ToWrite(tuple(t.shape), dtype, lambda name=name, shape=t.shape: draw(name, shape))
        for name, t in unet.state_dict().items()
    }
    levels = ("DownEncoderBlock2D",) * len(case.vae_widths)
    vae = VAE(
        VAEConfig(
            block_out_channels=case.vae_widths,
            down_block_types=levels,
            latent_channels=case.latent_channels,
            layers_per_block=1,
            force_upcast=False,
            norm_num_groups=case.groups,
        )
    )
    tower = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=224,
        patch_size=32,
        projection_dim=case.context,
    )
    encoder = ImageEncoder(tower.to_dict())
    parts = {"unet": Part(unet.config.to_dict(), tensors), "vae": part_of(vae)}
    parts["image_encoder"] = part_of(encoder, config=config_of(encoder))
    size = {"width": case.width, "height": case.height, "num_frames": case.num_frames}
    save_bundle(parts, folder, Settings(**size, num_steps=case.num_steps, guidance="1.0:3.0"))


# ---- in the children: the two sides --------------------------------------------------------------------


def unet_inputs(case: Case) -> tuple[Any, ...]:
    """x (1, T, 2c, h, w), c_noise (1,), context (1, 1, D), ids (1, 3)."""
    import torch

    generator = torch.Generator().manual_seed(1)
    num_frames, channels, height, width = case.latent_shape
    x = torch.randn(1, num_frames, 2 * channels, height, width, generator=generator)
    context = torch.randn(1, 1, case.context, generator=generator)
    return x, torch.tensor([0.5]), context, torch.tensor([[6.0, 127.0, 0.02]])


def latents(case: Case) -> Any:
    import torch

    return torch.randn(1, *case.latent_shape, generator=torch.Generator().manual_seed(2))


def picture(case: Case) -> Any:
    """(H, W, 3) uint8"""
    import numpy as np

    ramp = np.linspace(0, 255, case.width)[None, :, None] * np.linspace(0, 1, case.height)[:, None, None]
    return np.repeat(ramp, 3, axis=2).astype(np.uint8)


class Ours:
    """svdcli's side; each method makes a function of no arguments that does the work once."""

    def __init__(self, case: Case, folder: Path, mode: str = "high") -> None:
        import torch

        from svdcli.engine.memory import Residence
        from svdcli.model.bundle import open_bundle

        self.case = case
        self.residence = Residence(open_bundle(folder), mode, torch.device("cpu"), torch.float32)

    def unet(self) -> Callable[[], Any]:
        inputs = unet_inputs(self.case)
        opened = self.residence.use("unet")  # left open: the network stays for every call
        unet = opened.__enter__()
        return lambda: (opened, unet(*inputs))[1]

    def decode(self) -> Callable[[], Any]:
        z = latents(self.case)
        opened = self.residence.use("vae")
        vae = opened.__enter__()
        return lambda: (opened, vae.decode(z))[1]

    def pipeline(self) -> Callable[[], Any]:
        import torch

        from svdcli.engine.generate import Sampling, decode, generate

        sampling = Sampling.of(self.residence.files.settings)
        pixels = torch.from_numpy(picture(self.case)).movedim(-1, 0)[None] / 127.5 - 1

        def run() -> Any:
            return decode(self.residence, generate(self.residence, pixels, [0], sampling)[0], None, 0)

        return run


@contextmanager
def groups_of(case: Case) -> Iterator[None]:
    """GroupNorms made here get the case's number of groups; diffusers' classes know no other than 32."""
    import torch

    class GroupNorm(torch.nn.GroupNorm):
        def __init__(self, num_groups: int, num_channels: int, *args: Any, **kwargs: Any) -> None:
            super().__init__(case.groups, num_channels, *args, **kwargs)

    with patch("torch.nn.GroupNorm", GroupNorm):
        yield


class Theirs:
    """diffusers' side, everything resident, float32, its default attention."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case, self.folder = case, folder

    def network(self, part: str) -> Any:
        import torch
        from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel

        cls = {"unet": UNetSpatioTemporalConditionModel, "vae": AutoencoderKLTemporalDecoder}[part]
        with groups_of(self.case):
            return cls.from_pretrained(self.folder / part, torch_dtype=torch.float32).eval()

    def unet(self) -> Callable[[], Any]:
        unet = self.network("unet")
        x, c_noise, context, ids = unet_inputs(self.case)
        return lambda: unet(x, c_noise, context, ids).sample

    def decode(self) -> Callable[[], Any]:
        vae, z = self.network("vae"), latents(self.case)
        return lambda: vae.decode(z[0], num_frames=self.case.num_frames).sample[None]

    def pipeline(self) -> Callable[[], Any]:
        import torch
        from diffusers import EulerDiscreteScheduler, StableVideoDiffusionPipeline
        from PIL import Image
        from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

        # Part by part, as diffusers does not load a bundle whose norms have other groups than it knows.
        others = {
            "image_encoder": CLIPVisionModelWithProjection,
            "feature_extractor": CLIPImageProcessor,
            "scheduler": EulerDiscreteScheduler,
        }
        parts = {part: cls.from_pretrained(self.folder / part) for part, cls in others.items()}
        pipeline = StableVideoDiffusionPipeline(unet=self.network("unet"), vae=self.network("vae"), **parts)
        pipeline.set_progress_bar_config(disable=True)
        case, image = self.case, Image.fromarray(picture(self.case))
        return lambda: (
            pipeline(
                image,
                height=case.height,
                width=case.width,
                num_frames=case.num_frames,
                num_inference_steps=case.num_steps,
                min_guidance_scale=1.0,
                max_guidance_scale=3.0,
                fps=7,
                motion_bucket_id=127,
                noise_aug_strength=0.02,
                decode_chunk_size=case.num_frames,
                generator=torch.Generator().manual_seed(0),
                output_type="np",
            ).frames
        )


def time_side(case: Case, folder: Path, side: str, what: str, repeats: int) -> dict[str, Any]:
    """Seconds of each run, after one that warms up, whose output is kept."""
    import torch

    with torch.inference_mode():
        run = getattr(Ours(case, folder) if side == "svdcli" else Theirs(case, folder), what)()
        output, seconds = run(), []
        for _ in range(repeats):
            started = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - started)
    if what != "pipeline":  # the two draw their noise differently
        torch.save(output, folder / f"{what}-{side}.pt")
    return {"seconds": seconds}


def difference(folder: Path, what: str) -> dict[str, Any]:
    """The largest difference of both sides' outputs, by the largest value."""
    import torch

    ours, theirs = (torch.load(folder / f"{what}-{side}.pt", weights_only=True) for side in SIDES)
    return {"difference": float((ours - theirs).abs().max() / theirs.abs().max())}


def measure_peak(case: Case, folder: Path, side: str, what: str, mode: str) -> dict[str, Any]:
    """One side alone: MiB at the peak, MiB when all was imported, seconds to load and to run once."""
    import torch

    if side == "svdcli":
        import svdcli.engine.generate  # noqa: F401
    else:
        from diffusers import StableVideoDiffusionPipeline  # noqa: F401
    imported = peak_mib()
    started = time.perf_counter()
    with torch.inference_mode():
        run = getattr(Ours(case, folder, mode) if side == "svdcli" else Theirs(case, folder), what)()
        loaded = time.perf_counter()
        run()
    return {
        "peak_mib": round(peak_mib()),
        "imports_mib": round(imported),
        "load_seconds": round(loaded - started, 2),
        "run_seconds": round(time.perf_counter() - loaded, 2),
    }


def work(job: dict[str, Any]) -> None:
    """What a child does: one job, answered by lines of JSON."""
    if job.get("side") == "svdcli":
        import svdcli  # noqa: F401  # as its users do, before torch
    import torch

    if job["threads"]:
        torch.set_num_threads(job["threads"])
    case = FULL if job["case"] == "full" else CASES[job["case"]]
    folder = Path(job["folder"])
    if job["do"] == "make":
        make_bundle(case, folder)
    elif job["do"] == "time":
        print(json.dumps(time_side(case, folder, job["side"], job["what"], job["repeats"])))
    elif job["do"] == "compare":
        print(json.dumps(difference(folder, job["what"])))
    else:
        print(json.dumps(measure_peak(case, folder, job["side"], job["what"], job["mode"])))


# ---- the parent ----------------------------------------------------------------------------------------


def child(options: argparse.Namespace, **job: Any) -> list[dict[str, Any]]:
    """Run one job in a process of its own -> the objects that it printed."""
    print(
        " ".join(str(job[key]) for key in ("case", "do", "side", "what", "mode") if job.get(key)),
        file=sys.stderr,
    )
    return run_job(__file__, {"threads": options.threads, "repeats": options.repeats, **job})


def bench(options: argparse.Namespace, name: str, folder: Path) -> Iterator[dict[str, Any]]:
    """One row for each of UNet step, decode and pipeline."""
    given = {"case": name, "folder": str(folder)}
    child(options, do="make", **given)
    for what in WHAT:
        seconds: dict[str, list[float]] = {side: [] for side in SIDES}
        for _ in range(ROUNDS):
            for side in SIDES:
                seconds[side] += child(options, do="time", side=side, what=what, **given)[0]["seconds"]
        medians = {side: statistics.median(found) for side, found in seconds.items()}
        unlike = {} if what == "pipeline" else child(options, do="compare", what=what, **given)[0]
        peaks = {
            side: child(options, do="peak", side=side, what=what, mode="high", **given)[0] for side in SIDES
        }
        yield {
            "mode": "high",
            "what": what,
            "case": name,
            "seconds": medians,
            **unlike,
            **ratios(medians, peaks),
        }


def bench_full(options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """One UNet step of SVD's own size in each memory mode, beside diffusers."""
    child(options, do="make", case="full", folder=str(folder))
    job = {"do": "peak", "case": "full", "folder": str(folder), "what": "unet"}
    theirs = child(options, **job, side="diffusers", mode="")[0]
    for mode in ("normal", "low", "none"):
        both = {"svdcli": child(options, **job, side="svdcli", mode=mode)[0], "diffusers": theirs}
        seconds = {side: peak["run_seconds"] for side, peak in both.items()}
        yield {"case": "full", "mode": mode, "what": "unet", "seconds": seconds, **ratios(seconds, both)}


def ratios(seconds: dict[str, float], peaks: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """`time`: diffusers' over svdcli's. `memory`: svdcli's peak over diffusers'."""
    return {
        "peaks": peaks,
        "time": round(seconds["diffusers"] / seconds["svdcli"], 3),
        "memory": round(peaks["svdcli"]["peak_mib"] / peaks["diffusers"]["peak_mib"], 3),
    }


def show(rows: list[dict[str, Any]]) -> None:
    head = f"{'case':6}{'mode':8}{'what':10}{'svdcli':>10}{'diffusers':>11}{'time':>8}"
    print(f"{head}{'svdcli':>12}{'diffusers':>12}{'memory':>8}{'difference':>12}")
    for row in rows:
        seconds, peaks = row["seconds"], row["peaks"]
        print(
            f"{row['case']:6}{row['mode']:8}{row['what']:10}{seconds['svdcli']:8.3f} s{seconds['diffusers']:9.3f} s"
            f"{row['time']:7.2f}x{peaks['svdcli']['peak_mib']:8d} MiB{peaks['diffusers']['peak_mib']:8d} MiB"
            f"{row['memory']:7.2f}x{row.get('difference', float('nan')):12.1e}"
        )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all by default")
    parser.add_argument(
        "--full", action="store_true", help="SVD's own size too: 3 GB of disk, 8 GB of memory"
    )
    parser.add_argument("--only-full", action="store_true", help="nothing but that")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="0: as many as torch takes")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.job:
        work(json.loads(options.job))
        return 0
    unknown = set(options.cases) - set(CASES)
    if unknown:
        parser.error(f"there is no case {', '.join(sorted(unknown))}")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for name in [] if options.only_full else options.cases or CASES:
            rows += bench(options, name, Path(temporary) / name)
        if options.full or options.only_full:
            rows += bench_full(options, Path(temporary) / "full")
    show(rows)
    for row in rows:
        print(json.dumps(row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
