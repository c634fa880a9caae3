"""Where the parts of a model live while it samples: on the device, on the host, streamed, or in their file.

    high     all parts on the device, all the time
    normal   one part on the device at a time; the others wait on the host
    low      as normal, and the UNet's blocks come one after another from host memory
    none     the UNet's blocks come from the mapped file; nothing stays anywhere once it has run

The mathematics is the same in every mode, and so are the frames. On a CPU the host is the device: what would
wait there waits in the mapped file instead, and `low` is `normal`, block by block.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from svdcli.model.attention import SpatioTemporalTransformer
from svdcli.model.blocks import Downsample, SpatioTemporalResBlock, Upsample
from svdcli.model.bundle_files import BundleFiles
from svdcli.model.embedding import EmbeddingMLP
from svdcli.model.text_encoder import TextEncoder
from svdcli.model.unet import UNet, UNetConfig

Mode = Literal["high", "normal", "low", "none"]
MODES: tuple[Mode, ...] = get_args(Mode)

UNITS = (SpatioTemporalResBlock, SpatioTemporalTransformer, Downsample, Upsample)


class Residence:
    """Hands out the parts of one bundle, on the device and in the precision that it was made for."""

    def __init__(self, files: BundleFiles, mode: Mode, device: torch.device, dtype: torch.dtype) -> None:
        self.files, self.mode, self.device, self.dtype = files, mode, device, dtype
        self._kept: dict[str, nn.Module] = {}

    @contextmanager
    def use(self, part: str) -> Iterator[Any]:
        """The part, ready to run, for the length of the block.

        After it the part occupies no more than the mode allows, whoever may still hold the module.
        """
        place = self._place(part)
        module = self._kept.get(part) or self._load(part, place)
        if place != "nowhere":
            self._kept[part] = module
        try:
            if place == "host":
                with visiting(module, self.device):
                    yield module
            else:
                yield module
        finally:
            if place == "nowhere":
                replace_tensors(module, lambda tensor: tensor.to("meta"))
            if self.mode != "high":
                self.release()

    @property
    def unet_config(self) -> UNetConfig:
        return UNetConfig.from_dict(self.files.configs["unet"])

    def release(self) -> None:
        """Give back to the system what nothing holds any more."""
        gc.collect()
        if self.files.single is not None:
            self.files.single.close()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _streams(self, part: str) -> bool:
        return part == "unet" and self.mode in ("low", "none")

    def _place(self, part: str) -> Literal["device", "host", "nowhere"]:
        """Where the part stays between two uses. A streaming UNet is an empty shell and may stay anywhere."""
        if self.mode == "high" or self._streams(part):
            return "device"
        return "host" if self.mode in ("normal", "low") and self.device.type != "cpu" else "nowhere"

    def _load(self, part: str, place: str) -> nn.Module:
        if self._streams(part):
            return stream_unet(self.files, self.device, self.dtype, keep_on_host=self.mode == "low")
        # The encoder that asks for it (`force_upcast`) is float32: half precision overflows in it.
        upcast = part == "vae" and self.files.configs["vae"].get("force_upcast", True)
        device = torch.device("cpu") if place == "host" else self.device
        module = self.files.part(part, torch.float32 if upcast else self.dtype, device)
        if upcast:
            replace_tensors(module.get_submodule("decoder"), lambda tensor: tensor.to(self.dtype))
        if self.device.type == "cuda":
            # On a CPU the library lays weights out itself at each call, from a plain one as quickly.
            replace_tensors(module, channels_last)
        tokenizer = self.files.tokenizer() or self.files.path / "tokenizer"
        return TextEncoder(module, tokenizer) if part == "text_encoder" else module


def channels_last(tensor: Tensor) -> Tensor:
    """2D convolution weights in channels-last memory, as the activations are; others as they are."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def replace_tensors(module: nn.Module, make: Callable[[Tensor], Tensor]) -> None:
    """Put what `make` makes of it in the place of every parameter and buffer of the module."""
    for table in _tables(module):
        for name, tensor in table.items():
            if isinstance(tensor, nn.Parameter):
                table[name] = nn.Parameter(make(tensor.detach()), requires_grad=False)
            elif tensor is not None:
                table[name] = make(tensor)


@contextmanager
def visiting(module: nn.Module, device: torch.device) -> Iterator[None]:
    """The module on the device for the length of the block; after it, the very tensors that it had before."""
    before = [(table, dict(table)) for table in _tables(module)]
    try:
        replace_tensors(module, lambda tensor: tensor.to(device))
        yield
    finally:
        for table, tensors in before:
            table.update(tensors)


def _tables(module: nn.Module) -> list[dict[str, Any]]:
    return [table for owner in module.modules() for table in (owner._parameters, owner._buffers)]


def stream_unet(files: BundleFiles, device: torch.device, dtype: torch.dtype, *, keep_on_host: bool) -> UNet:
    """A UNet without weights, each of whose units fetches its own when it runs and drops them after.

    `keep_on_host`: from tensors in host memory (page-locked for a GPU), else from the mapped file each time.
    Raises InputError that names missing, extra or mis-shaped keys.
    """
    unet = files.build("unet")
    assert isinstance(unet, UNet)
    weights = files.checked("unet", dtype)
    if keep_on_host:
        lock = Tensor.pin_memory if device.type == "cuda" else Tensor.detach
        host = {name: lock(weights.tensor(name, dtype)) for name in weights}
    for name, unit in streamed_units(unet):

        def fetch(unit: nn.Module, _: Any, prefix: str = name) -> None:
            for owner, leaf, full in _slots(unit, prefix):
                if keep_on_host:
                    tensor = host[full].to(device, non_blocking=True)
                else:
                    tensor = weights.tensor(full, dtype, device)
                owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)

        def drop(unit: nn.Module, *_: Any) -> None:
            replace_tensors(unit, lambda tensor: tensor.to("meta"))
            if not keep_on_host:
                weights.close()  # the pages that were read are the system's again

        unit.register_forward_pre_hook(fetch)
        unit.register_forward_hook(drop, always_call=True)
    return unet.eval()


def streamed_units(unet: UNet) -> list[tuple[str, nn.Module]]:
    """The modules that travel as one, by name: blocks, transformers, samplers, and what lies at the top."""
    top = (nn.Conv2d, nn.GroupNorm, EmbeddingMLP)
    units: list[tuple[str, nn.Module]] = [(n, m) for n, m in unet.named_children() if isinstance(m, top)]
    return units + [(name, m) for name, m in unet.named_modules() if isinstance(m, UNITS)]


def _slots(unit: nn.Module, prefix: str) -> Iterator[tuple[nn.Module, str, str]]:
    """Owner, name there and full name of every parameter of the unit."""
    for path, owner in unit.named_modules(prefix=prefix):
        for leaf, parameter in owner._parameters.items():
            if parameter is not None:
                yield owner, leaf, f"{path}.{leaf}"
