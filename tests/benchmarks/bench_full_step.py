"""One training step of the full-size UNet (1.52 B parameters) on this machine: seconds and memory, part by part.

    python tests/benchmarks/bench_full_step.py --frames 2 --side 16

Random weights, the home-computer way: spatial layers frozen and held in bf16, temporal ones trained in float32,
moments in eight bits, blocks recomputed, one average of what trains.
"""

from __future__ import annotations

import argparse
import time

import psutil
import torch
from processes import peak_mib
from torch import nn

from svdcli.diffusion.denoiser import Denoiser
from svdcli.diffusion.loss import denoising_loss
from svdcli.engine.ema import Averages
from svdcli.engine.optim import build_optimizer, freeze, set_rate, settle_frozen
from svdcli.engine.recompute import recompute_blocks
from svdcli.model.unet import UNet, UNetConfig
from svdcli.recipe.recipe import Optim

GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=2)
    parser.add_argument("--side", type=int, default=16, help="of the latents; eight pixels each")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--state", default="8bit", choices=("full", "8bit", "host"))
    given = parser.parse_args()
    optim = Optim(lr=1e-5, freeze="spatial", state=given.state)
    clock = Clock()
    unet = random_unet(optim)
    clock.say(f"network: {sum(p.numel() for p in unet.parameters()):,} parameters")
    trained = [p for p in unet.parameters() if p.requires_grad]
    averages, optimizer = Averages(unet, optim), build_optimizer(unet, optim)
    clock.say(f"average of the {sum(p.numel() for p in trained):,} that train")
    for step in range(given.steps):
        x = torch.randn(1, given.frames, 4, given.side, given.side)
        denoiser = Denoiser(lambda noisy, c_noise: predict(unet, noisy, c_noise))
        loss = denoising_loss(denoiser, x, torch.tensor([1.0]), torch.randn_like(x)).mean()
        clock.say(f"forward, loss {loss.item():.3f}")
        loss.backward()
        clock.say("backward")
        norm = nn.utils.clip_grad_norm_(trained, optim.clip_norm)
        set_rate(optimizer, optim.lr)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.say(f"optimizer, gradient norm {norm.item():.3g}")
        averages.update(unet, step + 1)
        clock.say("average")


def predict(unet: UNet, noisy: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
    """F under the null condition."""
    ids = torch.tensor([[6.0, 127.0, 0.02]])
    return unet(torch.cat([noisy, torch.zeros_like(noisy)], dim=2), c_noise, torch.zeros(1, 1, 1024), ids)


def random_unet(optim: Optim) -> UNet:
    """Frozen and in half precision before it takes any memory."""
    with torch.device("meta"):
        unet = UNet(UNetConfig())
    freeze(unet, optim.freeze)
    settle_frozen(unet, "bf16-mixed")
    recompute_blocks(unet, 1.0)
    unet.to_empty(device="cpu")
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            else:
                parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return unet


class Clock:
    """Prints seconds since the last time, and memory now and at most."""

    def __init__(self) -> None:
        self.last = time.perf_counter()

    def say(self, what: str) -> None:
        seconds = time.perf_counter() - self.last
        now = psutil.Process().memory_info().rss
        print(
            f"{seconds:8.1f} s  {now / GIB:6.2f} GiB now  {peak_mib() / 1024:6.2f} GiB peak  {what}",
            flush=True,
        )
        self.last = time.perf_counter()


if __name__ == "__main__":
    main()
