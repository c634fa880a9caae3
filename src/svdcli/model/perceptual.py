"""Perceptual distance: LPIPS (Zhang et al. 2018, 1801.03924) in its shift-tolerant form (Ghildyal and Liu 2022, 2207.13686).

AlexNet features, normalised per position, squared differences weighted by learned heads and averaged. The network is ours to run,
without torchvision; its weights are those that the package `stlpips-pytorch` carries, and its numbers are not comparable
with LPIPS in papers.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from svdcli.errors import MachineError

CHANNELS = (64, 192, 384, 256, 256)
PACKAGE, WEIGHTS = "stlpips_pytorch", "weights/vST0.0/alex_shift_tolerant.pth"
KERNEL = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]) / 16


class PerceptualDistance(nn.Module):
    """Two pictures (N, 3, H, W) in [-1, 1], 32 pixels or more a side -> distance (N,), 0 where they are equal."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        kernels, inputs = (11, 5, 3, 3, 3), (3, *CHANNELS[:-1])
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, k, padding=2 if k > 3 else 1)
            for i, o, k in zip(inputs, CHANNELS, kernels, strict=True)
        )
        self.heads = nn.ParameterList(nn.Parameter(torch.ones(c)) for c in CHANNELS)
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None])

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        pairs = zip(self.features(a), self.features(b), self.heads, strict=True)
        return torch.stack(
            [
                ((_unit(x) - _unit(y)).square() * head[:, None, None]).sum(1).mean((1, 2))
                for x, y, head in pairs
            ]
        ).sum(0)

    def features(self, x: Tensor) -> list[Tensor]:
        """The five activations, before normalisation."""
        x = (x - self.shift) / self.scale
        x = functional.relu(_halve(self.convs[0](x)))
        found = [x]
        for index, conv in enumerate(self.convs[1:], 1):
            if index < 3:
                x = _halve(functional.max_pool2d(x, 3, stride=1))
            x = functional.relu(conv(x))
            found.append(x)
        return found


def _halve(x: Tensor) -> Tensor:
    """Blur and take every second sample; two reflected samples at each border."""
    kernel = KERNEL.to(x).expand(x.shape[1], 1, 3, 3)
    return functional.conv2d(
        functional.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=x.shape[1]
    )


def _unit(x: Tensor) -> Tensor:
    """Length 1 over the channels."""
    return x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)


def perceptual_weights() -> Path:
    """The file in the installed package. Raises MachineError where it is not installed."""
    try:
        path = Path(str(resources.files(PACKAGE).joinpath(WEIGHTS)))
    except ModuleNotFoundError:
        path = Path()
    if not path.is_file():
        raise MachineError(
            "The perceptual loss needs the weights of the package stlpips-pytorch.",
            "pip install 'svdcli[perceptual]', or set task.perceptual_weight = 0.",
        )
    return path


def load_perceptual() -> PerceptualDistance:
    """The network with its weights, frozen. Raises MachineError where the package is not installed."""
    saved = torch.load(perceptual_weights(), map_location="cpu", weights_only=True)
    network = PerceptualDistance()
    names = ("net.slice1.0", "net.slice2.5", "net.slice3.9", "net.slice4.11", "net.slice5.13")
    tensors = {
        f"convs.{i}.{part}": saved[f"{n}.{part}"] for i, n in enumerate(names) for part in ("weight", "bias")
    }
    tensors |= {f"heads.{i}": saved[f"lin{i}.model.1.weight"].flatten() for i in range(len(CHANNELS))}
    network.load_state_dict(
        tensors | {"shift": saved["scaling_layer.shift"][0], "scale": saved["scaling_layer.scale"][0]}
    )
    return network.eval().requires_grad_(False)
