"""Where the parts of a model live while it samples: resident, on the host, streamed block by block, or left in their file.

    high     all parts on the device, all the time
    normal   one part on the device at a time; the others wait in the mapped file or on the host
    low      the UNet's blocks come one after another from host memory
    none     they come from the mapped file, and nothing of them stays

The mathematics is the same in every mode, and so are the frames.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from svdcli.model.attention import SpatioTemporalTransformer
from svdcli.model.blocks import Downsample, SpatioTemporalResBlock, Upsample
from svdcli.model.bundle import BundleFiles
from svdcli.model.embedding import EmbeddingMLP
from svdcli.model.unet import UNet
from svdcli.model.weights import MappedWeights, check_weights

Mode = Literal["high", "normal", "low", "none"]
MODES: tuple[Mode, ...] = get_args(Mode)

UNITS = (SpatioTemporalResBlock, SpatioTemporalTransformer, Downsample, Upsample)


class Residence:
    """Hands out the parts of one bundle, on the device and in the precision that it was made for."""

    def __init__(self, files: BundleFiles, mode: Mode, device: torch.device, dtype: torch.dtype) -> None:
        self.files, self.mode, self.device, self.dtype = files, mode, device, dtype
        self._kept: dict[str, nn.Module] = {}

    def precision(self, part: str) -> torch.dtype:
        """The VAE that asks for it (`force_upcast`) stays in float32: half precision overflows in its encoder."""
        upcast = part == "vae" and self.files.configs["vae"].get("force_upcast", True)
        return torch.float32 if upcast else self.dtype

    @contextmanager
    def use(self, part: str) -> Iterator[nn.Module]:
        """The part, ready to run, for the length of the block."""
        module = self._kept.get(part) or self._load(part)
        if self.mode == "high":
            self._kept[part] = module
        try:
            yield module
        finally:
            if self.mode != "high":
                del module
                self._release()

    def _load(self, part: str) -> nn.Module:
        if part == "unet" and self.mode in ("low", "none"):
            return stream_unet(self.files, self.device, self.dtype, keep_on_host=self.mode == "low")
        return channels_last(self.files.part(part, self.precision(part), self.device))

    def _release(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def channels_last(module: nn.Module) -> nn.Module:
    """2D convolution weights in channels-last memory, as the activations are; only on a GPU, where that is what is fast.

    On a CPU the library lays them out itself at each call, from a plain weight as quickly as from another.
    """
    if next(module.parameters()).device.type == "cuda":
        for parameter in module.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return module


def stream_unet(files: BundleFiles, device: torch.device, dtype: torch.dtype, *, keep_on_host: bool) -> UNet:
    """A UNet without weights, each of whose units fetches its own when it runs and drops them after.

    `keep_on_host`: from tensors in host memory (page-locked for a GPU), else from the mapped file each time.
    """
    unet = files.build("unet")
    assert isinstance(unet, UNet)
    weights = files.weights("unet", dtype)
    check_weights(
        weights, {name: tuple(t.shape) for name, t in unet.state_dict().items()}, f"the unet of {files.name}"
    )
    host = {name: _to_host(weights.tensor(name, dtype), device) for name in weights} if keep_on_host else None
    for name, unit in streamed_units(unet):
        unit.register_forward_pre_hook(
            _fetcher(name, unit, host if host is not None else weights, device, dtype)
        )
        unit.register_forward_hook(_dropper(unit))
    return unet.eval()


def streamed_units(unet: UNet) -> list[tuple[str, nn.Module]]:
    """The modules that travel as one, with their names: blocks, transformers, samplers, and what lies at the top."""
    inner = [(name, m) for name, m in unet.named_modules() if isinstance(m, UNITS)]
    top = [(n, m) for n, m in unet.named_children() if isinstance(m, nn.Conv2d | nn.GroupNorm | EmbeddingMLP)]
    return top + inner


def _to_host(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.pin_memory() if device.type == "cuda" else tensor


def _fetcher(name: str, unit: nn.Module, source: dict[str, Tensor] | MappedWeights, device: torch.device, dtype: torch.dtype):  # fmt: skip
    leaves = [(f"{name}.{leaf}", leaf) for leaf, _ in unit.named_parameters()]

    def fetch(*_: object) -> None:
        for full, leaf in leaves:
            if isinstance(source, MappedWeights):
                tensor = source.tensor(full, dtype, device)
            else:
                tensor = source[full].to(device, non_blocking=True)
            _assign(unit, leaf, tensor)

    return fetch


def _dropper(unit: nn.Module):
    leaves = [(leaf, parameter.to("meta")) for leaf, parameter in unit.named_parameters()]

    def drop(*_: object) -> None:
        for leaf, empty in leaves:
            _assign(unit, leaf, empty)

    return drop


def _assign(unit: nn.Module, leaf: str, tensor: Tensor) -> None:
    owner_name, _, name = leaf.rpartition(".")
    unit.get_submodule(owner_name)._parameters[name] = nn.Parameter(tensor, requires_grad=False)
