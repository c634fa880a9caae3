"""What a run will need, on paper: memory by part and mode, before anything is loaded. And the mode that fits.

The weights are counted exactly, from the headers. The activations are a model of what is alive at once at the widest place of a
network, with a factor that was fitted to measured peaks (tests hold it against a measurement).
"""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch

from svdcli.engine.generate import Sampling
from svdcli.engine.memory import MODES, Mode, streamed_units
from svdcli.errors import MachineError
from svdcli.model.bundle import BundleFiles
from svdcli.model.unet import UNet

GIB = 1 << 30
RUNTIME_BYTES = {"cpu": 450 << 20, "cuda": 600 << 20, "mps": 500 << 20}
"""What the libraries take before any weight is loaded."""
UNET_LIVE, DECODER_LIVE = 4.0, 4.5
"""Tensors of the widest level alive at once: input, norm, convolution output and workspace."""
HEADROOM = 0.9
"""Share of the free memory that a plan may fill."""


@dataclass(frozen=True)
class Plan:
    """Predicted peak, in bytes, of each stage in one memory mode."""

    mode: Mode
    stages: dict[str, int]

    @property
    def peak(self) -> int:
        return max(self.stages.values())


@dataclass(frozen=True)
class Weights:
    """Bytes of each part on the device."""

    image_encoder: int
    vae: int
    unet: int
    largest_unit: int
    """the UNet's largest block: what streaming holds at once"""


def weigh(files: BundleFiles, dtype: torch.dtype, vae_dtype: torch.dtype) -> Weights:
    """Count from shapes; nothing is read but headers."""
    counts = {
        part: sum(p.numel() for p in files.build(part).parameters()) for part in ("image_encoder", "vae")
    }
    unet = files.build("unet")
    assert isinstance(unet, UNet)
    units = [sum(p.numel() for p in unit.parameters()) for _, unit in streamed_units(unet)]
    return Weights(
        image_encoder=counts["image_encoder"] * dtype.itemsize,
        vae=counts["vae"] * vae_dtype.itemsize,
        unet=sum(p.numel() for p in unet.parameters()) * dtype.itemsize,
        largest_unit=max(units) * dtype.itemsize,
    )


def make_plans(
    files: BundleFiles,
    sampling: Sampling,
    chunk: int | None,
    device: torch.device,
    dtype: torch.dtype,
    batch: int = 1,
) -> list[Plan]:
    """The plans of all modes, fastest first."""
    upcast = files.configs["vae"].get("force_upcast", True)
    vae_dtype = torch.float32 if upcast else dtype
    weights = weigh(files, dtype, vae_dtype)
    unet, decode, encode = activations(
        files, sampling, chunk, dtype, vae_dtype, batch, both=device.type == "cuda"
    )
    runtime = RUNTIME_BYTES.get(device.type, RUNTIME_BYTES["cuda"])
    everything = weights.image_encoder + weights.vae + weights.unet
    plans = []
    for mode in MODES:
        high = mode == "high"
        resident = {"high": weights.unet, "normal": weights.unet}.get(mode, weights.largest_unit)
        if mode == "low" and device.type == "cpu":
            resident += weights.unet  # on a CPU host memory is the device's
        unet_live = unet if high or device.type != "cuda" else unet // 2
        stages = {
            "embed the picture": runtime + (everything if high else weights.image_encoder),
            "encode the picture": runtime + encode + (everything if high else weights.vae),
            "denoise": runtime + unet_live + (everything if high else resident),
            "decode": runtime + decode + (everything if high else weights.vae),
        }
        plans.append(Plan(mode, stages))
    return plans


def activations(
    files: BundleFiles,
    sampling: Sampling,
    chunk: int | None,
    dtype: torch.dtype,
    vae_dtype: torch.dtype,
    batch: int,
    both: bool,
) -> tuple[int, int, int]:
    """Bytes of activations at the peak of the UNet, the decoder and the encoder.

    `both`: guidance's two branches run as one batch, if there are two.
    """
    unet, vae = files.configs["unet"], files.configs["vae"]
    downscale = 2 ** (len(vae["block_out_channels"]) - 1)
    pixels = sampling.width * sampling.height
    widths = unet["block_out_channels"]
    branches = 2 if both and bool((sampling.scales() != 1).any()) else 1
    tokens = batch * branches * sampling.num_frames * pixels // downscale**2
    skips = (
        tokens
        * widths[0]
        * (unet["layers_per_block"] if isinstance(unet["layers_per_block"], int) else 2)
        * 2
    )
    live = tokens * (widths[0] + widths[min(1, len(widths) - 1)]) * UNET_LIVE + skips
    frames = min(chunk or sampling.num_frames, sampling.num_frames)
    decoder = frames * pixels * (vae["block_out_channels"][0] + vae["block_out_channels"][1]) * DECODER_LIVE
    encoder = pixels * vae["block_out_channels"][0] * DECODER_LIVE
    return int(live) * dtype.itemsize, int(decoder) * vae_dtype.itemsize, int(encoder) * vae_dtype.itemsize


def free_bytes(device: torch.device) -> int:
    """Memory that is free on the device now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def choose(plans: list[Plan], free: int) -> Plan:
    """The first plan that fits. Raises MachineError where even the smallest does not."""
    for plan in plans:
        if plan.peak <= HEADROOM * free:
            return plan
    smallest = min(plans, key=lambda plan: plan.peak)
    raise MachineError(
        f"this needs about {smallest.peak / GIB:.1f} GiB in its smallest mode, and {free / GIB:.1f} GiB are free",
        "Lower --size, --frames or --decode-chunk, or force a mode with --vram none.",
    )
