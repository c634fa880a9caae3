"""I3D: the Inception-v1 network inflated to three dimensions, as a feature extractor for Fréchet distances.

Source: Carreira & Zisserman, "Quo Vadis, Action Recognition?" (1705.07750), Fig. 3. Inference only: there is
no dropout and no way to train it here. Key names are those of the common PyTorch port, so its weights load.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from svdcli.errors import InputError

SIDE = 224
"""Height and width that the network was trained at, pixels."""

MIN_FRAMES = 9
"""Fewest frames that leave the two time steps that the last pooling spans."""

Triple = tuple[int, int, int]

# Channels of the Inception blocks, as in GoogLeNet: 1x1 | 1x1, 3x3x3 | 1x1, 3x3x3 | pool, 1x1.
_BLOCKS: dict[str, tuple[int, int, int, int, int, int]] = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}


class Features(NamedTuple):
    """What the network says of a batch of clips."""

    logits: Tensor
    """(B, 400): the classes before softmax; what FVD is computed on."""
    pooled: Tensor
    """(B, 1024): the last activations, averaged over time and space."""


def pad_same(x: Tensor, kernel: Triple, stride: Triple) -> Tensor:
    """(B, C, T, H, W) padded with zeros like TensorFlow's 'SAME': ceil(n / stride) outputs, odd one last.

    PyTorch's symmetric padding is not this: for n = 224, kernel 7, stride 2 it pads 3 before, TensorFlow 2.
    """
    pads: list[int] = []
    for size, k, s in reversed(list(zip(x.shape[2:], kernel, stride, strict=True))):
        total = max((-(-size // s) - 1) * s + k - size, 0)
        pads += [total // 2, total - total // 2]
    return functional.pad(x, pads)


def max_pool_same(x: Tensor, kernel: Triple, stride: Triple) -> Tensor:
    """Max pooling with 'SAME' padding; zeros do for minus infinity, as activations are never negative."""
    return functional.max_pool3d(pad_same(x, kernel, stride), kernel, stride)


class Unit(nn.Module):
    """Convolution without bias, batch normalisation, ReLU."""

    def __init__(self, c_in: int, c_out: int, kernel: Triple = (1, 1, 1), stride: Triple = (1, 1, 1)) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.conv3d = nn.Conv3d(c_in, c_out, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(c_out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv3d(pad_same(x, self.kernel, self.stride))))


class InceptionBlock(nn.Module):
    """Four branches over the same input, concatenated over channels."""

    def __init__(self, c_in: int, channels: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        self.b0 = Unit(c_in, channels[0])
        self.b1a = Unit(c_in, channels[1])
        self.b1b = Unit(channels[1], channels[2], (3, 3, 3))
        self.b2a = Unit(c_in, channels[3])
        self.b2b = Unit(channels[3], channels[4], (3, 3, 3))
        self.b3b = Unit(c_in, channels[5])

    def forward(self, x: Tensor) -> Tensor:
        pooled = max_pool_same(x, (3, 3, 3), (1, 1, 1))
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)], dim=1)


class Logits(nn.Module):
    """The classifier: a 1x1x1 convolution, named as the weights name it."""

    def __init__(self, c_in: int, num_classes: int) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(c_in, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv3d(x)
        return y


class I3D(nn.Module):
    """The RGB network for Kinetics-400."""

    def __init__(self, num_classes: int = 400) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = Unit(3, 64, (7, 7, 7), (2, 2, 2))
        self.Conv3d_2b_1x1 = Unit(64, 64)
        self.Conv3d_2c_3x3 = Unit(64, 192, (3, 3, 3))
        width = 192
        for name, channels in _BLOCKS.items():
            self.add_module(name, InceptionBlock(width, channels))
            width = channels[0] + channels[2] + channels[4] + channels[5]
        self.logits = Logits(width, num_classes)
        self.eval()

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Features:
        """Pixels (B, 3, T, 224, 224) in [-1, 1], T >= 9 -> logits (B, 400) and pooled features (B, 1024).

        Raises InputError for another shape or too few frames.
        """
        if pixels.ndim != 5 or pixels.shape[1] != 3 or pixels.shape[3:] != (SIDE, SIDE):
            shape = tuple(pixels.shape)
            raise InputError(
                f"I3D reads pixels (B, 3, T, {SIDE}, {SIDE}), not {shape}.", "Use video_features."
            )
        if pixels.shape[2] < MIN_FRAMES:
            raise InputError(
                f"I3D needs {MIN_FRAMES} frames or more, and the clip has {pixels.shape[2]}.",
                "Use longer clips.",
            )
        x = max_pool_same(self.Conv3d_1a_7x7(pixels), (1, 3, 3), (1, 2, 2))
        x = self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x))
        x = max_pool_same(x, (1, 3, 3), (1, 2, 2))
        for name in _BLOCKS:
            if name == "Mixed_4b":
                x = max_pool_same(x, (3, 3, 3), (2, 2, 2))
            elif name == "Mixed_5b":
                x = max_pool_same(x, (2, 2, 2), (2, 2, 2))
            x = self.get_submodule(name)(x)
        # The paper classifies each window of two time steps and averages the classes; the classifier is
        # linear, so averaging the windows first is the same.
        pooled = functional.avg_pool3d(x, (2, 7, 7), stride=1).mean(dim=2, keepdim=True)
        return Features(self.logits(pooled).flatten(1), pooled.flatten(1))


def load_i3d(path: str | Path, device: str | torch.device = "cpu") -> I3D:
    """A safetensors file of Kinetics-400 weights -> the network in float32, ready for inference.

    Half-precision weights are widened. Raises InputError where the file is missing, is not safetensors, or
    has a key that is missing, unknown or of another shape (it names it).
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"There are no I3D weights at {path}.", "Give the path of a Kinetics-400 safetensors file."
        )
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        hint = "Give weights in safetensors form; pickles (.pt, .pth) are not read."
        raise InputError(f"{path} cannot be read as safetensors: {error}.", hint) from error
    network = I3D()
    wanted = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    wrong = (
        f"{key}: {found.get(key, 'absent')} where {wanted.get(key, 'nothing')} is expected"
        for key in sorted(wanted.keys() | found.keys())
        if wanted.get(key) != found.get(key)
    )
    named = list(islice(wrong, 3))
    if named:
        raise InputError(f"{path} is not I3D for Kinetics-400 ({'; '.join(named)}).", "Give other weights.")
    network.load_state_dict(state)
    return network.to(device).requires_grad_(False)
