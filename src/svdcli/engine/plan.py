"""What a run will need, on paper: memory by stage and mode, before anything is loaded. And the mode that fits.

The weights are counted exactly, from the configuration. The activations are a model of what is alive at once at
the widest place of a network, with factors that were fitted to measured peaks; a test holds it against one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
import torch

from svdcli.engine.generate import Sampling
from svdcli.engine.memory import MODES, Mode, streamed_units
from svdcli.errors import MachineError
from svdcli.model.attention import FEED_FORWARD_ROWS
from svdcli.model.bundle_files import BundleFiles
from svdcli.model.unet import UNet

GIB = 1 << 30
RUNTIME_BYTES = {"cpu": 480 << 20, "cuda": 600 << 20, "mps": 500 << 20}
"""What the libraries take, before any weight is loaded."""
TRANSFORMER_LIVE, RESNET_LIVE, DECODER_LIVE, ENCODER_LIVE = 11.0, 2.5, 4.0, 4.0
"""Tensors alive at once: in a transformer and in the autoencoder's first level, of that width; in the UNet's
resnets, of the input of the widest."""
PIXEL_LIVE = 15
"""Channels of decoded pixels, on their way to bytes."""
HEADROOM = 0.9
"""Share of the free memory that a plan may fill."""
SMALL_CHUNK = 4
"""Frames that are decoded together even where memory is what counts: fewer would flicker."""


@dataclass(frozen=True)
class Plan:
    """Predicted peak, in bytes, of each stage in one memory mode."""

    mode: Mode
    chunk: int
    """frames decoded at a time"""
    stages: dict[str, int]

    @property
    def peak(self) -> int:
        return max(self.stages.values())


@dataclass(frozen=True)
class Planner:
    """What is asked of a bundle, and from it the bytes of every part of the work."""

    files: BundleFiles
    sampling: Sampling
    device: torch.device
    dtype: torch.dtype
    chunk: int | None = None
    """frames decoded at a time; None: as many as the memory allows"""
    overlap: int = 0

    def plans(self, free: int) -> list[Plan]:
        """The plans of all modes, fastest first, for `free` bytes on the device."""
        return [self.plan(mode, free) for mode in MODES]

    def plan(self, mode: Mode, free: int) -> Plan:
        """Stages that run one after another; only in the mode `high` are all weights there in each."""
        base, high = RUNTIME_BYTES.get(self.device.type, RUNTIME_BYTES["cuda"]), mode == "high"
        if high:
            base += self.encoder + self.vae + self.unet
        batched = high and self.device.type == "cuda" and bool((self.sampling.scales() != 1).any())
        encode = base + (0 if high else self.vae) + self.encoder_live
        denoise = base + (0 if high else self.unet_there(mode)) + self.unet_live * (2 if batched else 1)
        decode = base + (0 if high else self.vae)
        chunk = min(self.chunk or self.total, self.total)
        if self.chunk is None:
            room = HEADROOM * free
            if mode in ("low", "none"):
                room = min(room, max(denoise, decode + SMALL_CHUNK * self.frame_live))
            chunk = even_chunk(self.total, int(room - decode) // self.frame_live, self.overlap)
        stages = {
            "embed": base + (0 if high else self.encoder),
            "encode": encode,
            "denoise": denoise,
            "decode": decode + chunk * self.frame_live,
        }
        return Plan(mode, chunk, stages)

    @property
    def total(self) -> int:
        return self.sampling.num_frames

    @property
    def places(self) -> int:
        """Pixels of a frame."""
        return self.sampling.width * self.sampling.height

    @property
    def widths(self) -> list[int]:
        """Channels of the autoencoder's levels."""
        return self.files.configs["vae"]["block_out_channels"]

    @property
    def encoder_itemsize(self) -> int:
        """The encoder that asks for it is float32 whatever the rest is."""
        upcast = self.files.configs["vae"].get("force_upcast", True)
        return torch.float32.itemsize if upcast else self.dtype.itemsize

    @cached_property
    def encoder(self) -> int:
        """What reads the picture, or the words."""
        part = "image_encoder" if "image_encoder" in self.files.configs else "text_encoder"
        if part not in self.files.configs:
            return 0
        return _num_parameters(self.files.build(part)) * self.dtype.itemsize

    @cached_property
    def vae(self) -> int:
        vae = self.files.build("vae")
        decoder = _num_parameters(vae.get_submodule("decoder"))
        return decoder * self.dtype.itemsize + (_num_parameters(vae) - decoder) * self.encoder_itemsize

    @property
    def unet(self) -> int:
        return self._unet_and_largest_unit[0]

    @cached_property
    def _unet_and_largest_unit(self) -> tuple[int, int]:
        unet = self.files.build("unet")
        assert isinstance(unet, UNet)
        largest = max(_num_parameters(unit) for _, unit in streamed_units(unet))
        return _num_parameters(unet) * self.dtype.itemsize, largest * self.dtype.itemsize

    def unet_there(self, mode: Mode) -> int:
        """What of the UNet is on the device while it runs."""
        whole, unit = self._unet_and_largest_unit
        if mode == "normal":
            return whole
        return unit + (whole if mode == "low" and self.device.type == "cpu" else 0)

    @property
    def unet_live(self) -> int:
        """Activations at the peak of the UNet, of one clip in one branch of guidance.

        The skips of the first level lie there while the last one runs: its resnets, whose input is joined with
        them, or a transformer, with the hidden layers of its feed-forward, which are kept below a limit.
        """
        config = self.files.configs["unet"]
        widths, layers = config["block_out_channels"], config.get("layers_per_block", 2)
        tokens = self.sampling.at_once * self.places // 4 ** (len(self.widths) - 1)
        skips = tokens * widths[0] * ((layers if isinstance(layers, int) else layers[0]) + 1)
        peak = tokens * (widths[0] + _second(widths)) * RESNET_LIVE
        for level, (width, kind) in enumerate(zip(widths, config["down_block_types"], strict=True)):
            if kind.startswith("CrossAttn"):
                here = tokens // 4**level * width
                peak = max(peak, TRANSFORMER_LIVE * here + 2 * min(8 * here, FEED_FORWARD_ROWS))
        return int(skips + peak) * self.dtype.itemsize

    @property
    def frame_live(self) -> int:
        """Activations at the peak of the decoder, per frame: of its last level, and the input of that."""
        channels = DECODER_LIVE * self.widths[0] + _second(self.widths) + PIXEL_LIVE
        return int(self.places * channels) * self.dtype.itemsize

    @property
    def encoder_live(self) -> int:
        """Activations at the peak of the encoder, of one picture."""
        return int(self.places * self.widths[0] * ENCODER_LIVE) * self.encoder_itemsize


def even_chunk(total: int, at_most: int, overlap: int) -> int:
    """The smallest chunk that needs no more chunks than `at_most` frames at a time do: none is nearly empty."""
    at_most = max(1, min(at_most, total))
    overlap = min(overlap, at_most - 1)
    count = math.ceil((total - overlap) / (at_most - overlap))
    return math.ceil((total + (count - 1) * overlap) / count)


def free_bytes(device: torch.device) -> int:
    """Memory that is free on the device now; of the host, what the container leaves of it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min((psutil.virtual_memory().available, *_container_free()))


def choose(plans: list[Plan], free: int) -> Plan:
    """The first plan that fits. Raises MachineError where even the smallest does not."""
    for plan in plans:
        if plan.peak <= HEADROOM * free:
            return plan
    smallest = min(plans, key=lambda plan: plan.peak)
    raise MachineError(
        f"this needs about {smallest.peak / GIB:.1f} GiB in its smallest mode, and {free / GIB:.1f} GiB are free",
        f"Lower --size, --frames or --decode-chunk, or try all the same with --vram {smallest.mode}.",
    )


def _num_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _second(widths: Any) -> int:
    return widths[min(1, len(widths) - 1)]


def _container_free(root: Path = Path("/sys/fs/cgroup")) -> tuple[int, ...]:
    """What a Linux control group with a limit has left, its file cache not counted; nothing elsewhere."""
    try:
        limit = int((root / "memory.max").read_text())
        used = int((root / "memory.current").read_text())
        stat: Mapping[str, str] = dict(map(str.split, (root / "memory.stat").read_text().splitlines()))  # type: ignore[arg-type]
        return (max(0, limit - used + int(stat["inactive_file"])),)
    except (OSError, ValueError, KeyError):
        return ()
