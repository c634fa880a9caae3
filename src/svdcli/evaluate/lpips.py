"""LPIPS (Zhang et al. 2018, 1801.03924) without torchvision: the backbones are ours, the weights are the user's.

A distance is named after its network (lpips-alex, lpips-vgg, st-lpips), because papers that say "LPIPS" mean either and
the figures differ. Pictures go in as [-1, 1]; giving [0, 1] is the classic error, so here only uint8 or [0, 1] is taken.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from svdcli.errors import InputError
from svdcli.evaluate.similarity import Picture, check_pair
from svdcli.io.files import require_file
from svdcli.model.perceptual import load_perceptual

Backbone = Literal["alex", "vgg"]
LEAST_SIDE = 32
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
# (index in torchvision's `features`, in, out, kernel, stride, padding); "pool"; "tap": the activation counts
_Layer = tuple[int, int, int, int, int, int] | Literal["pool", "tap"]
_ALEX: tuple[_Layer, ...] = (
    (0, 3, 64, 11, 4, 2), "tap", "pool", (3, 64, 192, 5, 1, 2), "tap", "pool", (6, 192, 384, 3, 1, 1), "tap",
    (8, 384, 256, 3, 1, 1), "tap", (10, 256, 256, 3, 1, 1), "tap",
)  # fmt: skip
_VGG: tuple[_Layer, ...] = (
    (0, 3, 64, 3, 1, 1), (2, 64, 64, 3, 1, 1), "tap", "pool",
    (5, 64, 128, 3, 1, 1), (7, 128, 128, 3, 1, 1), "tap", "pool",
    (10, 128, 256, 3, 1, 1), (12, 256, 256, 3, 1, 1), (14, 256, 256, 3, 1, 1), "tap", "pool",
    (17, 256, 512, 3, 1, 1), (19, 512, 512, 3, 1, 1), (21, 512, 512, 3, 1, 1), "tap", "pool",
    (24, 512, 512, 3, 1, 1), (26, 512, 512, 3, 1, 1), (28, 512, 512, 3, 1, 1), "tap",
)  # fmt: skip
_PLANS: dict[str, tuple[tuple[_Layer, ...], int]] = {"alex": (_ALEX, 3), "vgg": (_VGG, 2)}
"""layers, and the side of the pooling window; its stride is 2"""


class LPIPS(nn.Module):
    """Two pictures (N, 3, H, W) in [-1, 1] -> distance (N,)."""

    shift: Tensor
    scale: Tensor

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.plan, self.window = _PLANS[backbone]
        layers = [layer for layer in self.plan if not isinstance(layer, str)]
        self.convs = nn.ModuleDict({str(i): nn.Conv2d(a, b, k, s, p) for i, a, b, k, s, p in layers})
        widths = [self.plan[at - 1][2] for at, layer in enumerate(self.plan) if layer == "tap"]
        self.heads = nn.ParameterList(nn.Parameter(torch.ones(int(width))) for width in widths)
        self.register_buffer("shift", torch.tensor(_SHIFT)[:, None, None])
        self.register_buffer("scale", torch.tensor(_SCALE)[:, None, None])

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        pairs = zip(self.features(a), self.features(b), self.heads, strict=True)
        return torch.stack(
            [((x - y).square() * head[:, None, None]).sum(1).mean((1, 2)) for x, y, head in pairs]
        ).sum(0)

    def features(self, x: Tensor) -> list[Tensor]:
        """The five activations, of length 1 over the channels."""
        x, found = (x - self.shift) / self.scale, []
        for layer in self.plan:
            if layer == "pool":
                x = functional.max_pool2d(x, self.window, 2)
            elif layer == "tap":
                found.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
            else:
                x = functional.relu(self.convs[str(layer[0])](x))
        return found


@dataclass(frozen=True, eq=False)
class Perceptual:
    """A perceptual distance under the name that belongs beside its figures."""

    name: str
    network: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, a: Picture, b: Picture) -> float:
        """Pictures (H, W, 3) in [0, 1], 32 pixels a side or more -> distance. Raises InputError."""
        check_pair(a, b)
        if min(a.shape[:2]) < LEAST_SIDE:
            raise InputError(
                f"{self.name} needs {LEAST_SIDE} pixels a side, not {a.shape[:2]}.", "Compare larger ones."
            )
        x, y = (
            torch.from_numpy(np.ascontiguousarray(p, np.float32)).permute(2, 0, 1)[None] * 2 - 1
            for p in (a, b)
        )
        with torch.inference_mode():
            return float(self.network(x, y))


def load_lpips(backbone: Path, heads: Path) -> Perceptual:
    """torchvision's alexnet or vgg16 weights, and LPIPS's linear heads -> the distance; which of the two is seen from the heads.

    Raises InputError where a file is missing, no table of tensors, or another network's.
    """
    linear, deep = _tensors(heads), _tensors(backbone)
    widths = [tensor.numel() for _, tensor in sorted(linear.items())]
    kind: Backbone = "alex" if widths == [64, 192, 384, 256, 256] else "vgg"
    network = LPIPS(kind)
    if widths != [head.numel() for head in network.heads]:
        raise InputError(
            f"{heads} holds no heads for AlexNet or VGG.", "Take v0.1/alex.pth or v0.1/vgg.pth of lpips."
        )
    try:
        state = {
            f"convs.{i}.{part}": deep[f"features.{i}.{part}"]
            for i in network.convs
            for part in ("weight", "bias")
        }
        state |= {f"heads.{i}": tensor.flatten() for i, (_, tensor) in enumerate(sorted(linear.items()))}
        network.load_state_dict(state | {"shift": network.shift, "scale": network.scale})
    except (KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()
        message = f"{backbone} is not torchvision's {'alexnet' if kind == 'alex' else 'vgg16'}: {reason}."
        raise InputError(message, "The heads decide which one is needed.") from error
    return Perceptual(f"lpips-{kind}", network.eval().requires_grad_(False))


def load_st_lpips() -> Perceptual:
    """The shift-tolerant form whose weights `pip install 'svdcli[perceptual]'` brings; not the LPIPS of papers."""
    return Perceptual("st-lpips", load_perceptual())


def _tensors(path: Path) -> dict[str, Tensor]:
    require_file(path, "file of weights")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise InputError(
            f"{path} is no table of tensors.", "Give a state dict, .pth or .safetensors."
        ) from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise InputError(f"{path} is no table of tensors.", "Give a state dict, .pth or .safetensors.")
    return found
