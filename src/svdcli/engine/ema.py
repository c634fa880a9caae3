"""Averages of the trained weights: exponential, or two of power-function weight that any other is made of.

The power function average of width σ weighs step τ of t by τ^γ, so that it reaches back over the same share of
every run. From snapshots of two such averages, taken along the run, that of any width is reconstructed
afterwards by least squares (Karras et al. 2024, 2312.02696, §3 and appendix C).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from svdcli.engine.adapter import load_weights, saved_weights
from svdcli.engine.shards import local, place, whole
from svdcli.errors import InputError
from svdcli.io.files import atomic_path
from svdcli.recipe.recipe import Optim

SNAPSHOTS = "averages"


class Averages:
    """The averages of one network. Parameters that do not train are shared with it, and cost nothing."""

    def __init__(self, network: nn.Module, optim: Optim) -> None:
        """All equal the weights at first."""
        self.optim = optim
        frozen = {id(p): p for p in network.parameters() if not p.requires_grad}
        self.module: nn.Module = copy.deepcopy(network, dict(frozen)).eval().requires_grad_(False)
        """with the average that is evaluated and exported"""
        self.trained = [name for name, p in network.named_parameters() if p.requires_grad]
        self.narrow: dict[str, Tensor] = {}
        """the narrower power average, by parameter"""
        if optim.ema == "power":
            self.narrow = {name: p.clone() for name, p in self._wide().items()}

    def _wide(self) -> dict[str, Tensor]:
        named = dict(self.module.named_parameters())
        return {name: named[name].detach() for name in self.trained}

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Take in the weights after so many steps."""
        named = dict(network.named_parameters())
        weights = [local(named[name].detach()) for name in self.trained]
        for tensors, share in self._shares(step):
            torch._foreach_lerp_([local(t) for t in tensors.values()], weights, share)

    def _shares(self, step: int) -> Iterator[tuple[dict[str, Tensor], float]]:
        """Each average, and the share that the newest weights get in it."""
        if self.optim.ema == "exponential":
            yield self._wide(), 1.0 - min(self.optim.ema_decay, (1 + step) / (10 + step))
            return
        narrow, wide = self.optim.ema_widths
        for tensors, width in ((self.narrow, narrow), (self._wide(), wide)):
            yield tensors, 1.0 - (1.0 - 1.0 / step) ** (exponent(width) + 1.0)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Whole tensors, for a checkpoint; collective where the network is sharded."""
        return {"module": whole(saved_weights(self.module)), "narrow": whole(self.narrow)}

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Raises as `nn.Module.load_state_dict` does, and KeyError."""
        load_weights(self.module, place(state["module"], self.module.state_dict()))
        for name, tensor in place({n: state["narrow"][n] for n in self.narrow}, self.narrow).items():
            self.narrow[name].copy_(tensor)

    def snapshot(self, folder: Path, step: int, write: bool) -> None:
        """Both power averages into the run folder, in half precision; collective where the network is sharded."""
        for width, tensors in zip(self.optim.ema_widths, (self.narrow, self._wide()), strict=True):
            gathered = whole(tensors)
            if not write:
                continue
            (folder / SNAPSHOTS).mkdir(exist_ok=True)
            half = {name: t.to("cpu", torch.float16).contiguous() for name, t in gathered.items()}
            with atomic_path(folder / SNAPSHOTS / f"{step:09d}-{width:g}.safetensors") as temporary:
                save_file(half, temporary, {"step": str(step), "width": str(width)})


# ---- afterwards ----------------------------------------------------------------------------------------


def reconstruct(folder: Path, width: float, step: int | None = None) -> dict[str, Tensor]:
    """Run folder, width as a share of the run -> the power average of that width at a step, float32 by parameter.

    `step` is a snapshot's, the last one's if absent; those behind it are not used. Holds what trained alone.
    Raises InputError where there is no such snapshot.
    """
    files = sorted((folder / SNAPSHOTS).glob("[0-9]*.safetensors"))
    found = [(*_read_name(file), file) for file in files]
    last = step or max((s for s, _, _ in found), default=0)
    found = [row for row in found if row[0] <= last]
    if not any(s == last for s, _, _ in found):
        raise InputError(
            f"{folder / SNAPSHOTS} holds no snapshot of step {last}."
            if step
            else f"{folder} holds no snapshots.",
            "Train with optim.ema=power, and see optim.ema_snapshot_every.",
        )
    steps, widths = np.array([s for s, _, _ in found]), np.array([w for _, w, _ in found])
    result: dict[str, Tensor] = {}
    for share, (_, _, file) in zip(blend(steps, widths, last, width), found, strict=True):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():
                part = tensors.get_tensor(name).float().mul_(float(share))
                result[name] = result[name].add_(part) if name in result else part
    return result


def _read_name(file: Path) -> tuple[int, float]:
    with safe_open(file, framework="pt") as tensors:
        metadata = tensors.metadata()
    return int(metadata["step"]), float(metadata["width"])


def exponent(width: float) -> float:
    """γ of the power function whose standard deviation is `width` of the run.

    width² = (γ + 1) / ((γ + 2)² (γ + 3)), of which γ is the largest root.
    """
    roots = np.roots([1.0, 7.0, 16.0 - width**-2, 12.0 - width**-2])
    return float(np.real(roots).max())


def blend(
    steps: npt.NDArray[np.int64], widths: npt.NDArray[np.float64], at: int, width: float
) -> npt.NDArray[np.float64]:
    """How much of each snapshot goes into the average of `width` at step `at`, by least squares."""
    gammas = np.array([exponent(w) for w in widths])
    times = steps.astype(np.float64)
    products = _product(times[:, None], gammas[:, None], times[None], gammas[None])
    wanted = _product(times, gammas, np.float64(at), np.float64(exponent(width)))
    return np.linalg.lstsq(products, wanted, rcond=1e-13)[0].astype(np.float64)


def _product(
    t1: npt.ArrayLike, g1: npt.ArrayLike, t2: npt.ArrayLike, g2: npt.ArrayLike
) -> npt.NDArray[np.float64]:
    """∫ of two power functions' product: (γ + 1) τ^γ / t^(γ + 1) on [0, t], each with its own t and γ."""
    t1, g1, t2, g2 = (np.asarray(v, dtype=np.float64) for v in (t1, g1, t2, g2))
    shorter = np.minimum(t1, t2)
    falls = (shorter / t1) ** g1 * (shorter / t2) ** g2 * shorter / (t1 * t2)
    return (g1 + 1) * (g2 + 1) / (g1 + g2 + 1) * falls
