"""Is a bundle what it says it is? Names, shapes, finite values, both encoders of a single file, and one tiny
pass.

What it is not: a judgement of quality, and no comparison with a published file; for that there are the
hashes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn

from svdcli.errors import InputError
from svdcli.model import layouts
from svdcli.model.bundle_files import BundleFiles
from svdcli.model.image_encoder import ImageEncoder
from svdcli.model.mask_latent import MaskLatent
from svdcli.model.unet import UNet
from svdcli.model.vae import VAE
from svdcli.model.weights import some

SMALL = 200_000_000
"""Networks of more parameters pass their tiny test in bfloat16, to spare memory."""


@dataclass(frozen=True)
class Check:
    """One finding. A warning is worth knowing but no failure."""

    name: str
    passed: bool
    detail: str
    warning: bool = False


def verify(files: BundleFiles) -> Iterator[Check]:
    """Check a bundle, part by part, with one part in memory at a time. Raises nothing about the bundle
    itself.
    """
    for part in files.parts:
        try:
            weights = files.checked(part)
        except InputError as error:
            yield Check(f"{part} weights", False, error.message)
            continue
        count = sum(prod(weights.shape(name)) for name in weights)
        yield Check(f"{part} weights", True, f"{len(weights)} tensors, {count:,} parameters")
        bad = [name for name in weights if not torch.isfinite(weights.tensor(name, torch.float32)).all()]
        yield Check(f"{part} values", not bad, f"not finite: {some(bad)}" if bad else "finite")
        if not bad:
            yield _pass(files, part, torch.float32 if count < SMALL else torch.bfloat16)
    yield from _scheduler(files)
    yield from _single(files)


def _run_unet(unet: UNet, dtype: torch.dtype, noise: torch.Generator) -> Tensor:
    config, side = unet.config, 2**unet.config.num_levels
    x = torch.randn(1, 2, config.in_channels, side, side, generator=noise).to(dtype)
    context = torch.randn(1, 1, config.per_level("cross_attention_dim")[0], generator=noise).to(dtype)
    ids = torch.tensor([[6.0, 127.0, 0.02]])
    if config.num_vector_ids != ids.shape[1] or config.id_widths:  # of a multi-view network, each view's own
        ids = torch.rand(1, 2, config.num_vector_ids, generator=noise)
    return unet(x, torch.zeros(1), context, ids)


def _run_vae(vae: VAE, dtype: torch.dtype, noise: torch.Generator) -> Tensor:
    side = 8 * vae.config.downscale
    return vae.decode(vae.encode(torch.rand(1, 2, 3, side, side, generator=noise).to(dtype) * 2 - 1))


def _run_image_encoder(encoder: ImageEncoder, dtype: torch.dtype, noise: torch.Generator) -> Tensor:
    return encoder(torch.rand(1, 3, 64, 64, generator=noise) * 2 - 1)


def _run_text_encoder(clip: nn.Module, dtype: torch.dtype, noise: torch.Generator) -> Tensor:
    out: Tensor = clip(input_ids=torch.zeros(1, 4, dtype=torch.long)).last_hidden_state
    return out


def _run_mask_latent(mask: MaskLatent, dtype: torch.dtype, noise: torch.Generator) -> Tensor:
    return mask(torch.randn(1, 2, mask.config.channels, 4, 4, generator=noise).to(dtype), 3)


_RUNS: dict[str, Callable[..., Tensor]] = {
    "unet": _run_unet,
    "vae": _run_vae,
    "image_encoder": _run_image_encoder,
    "text_encoder": _run_text_encoder,
    "mask_latent": _run_mask_latent,
}


def _pass(files: BundleFiles, part: str, dtype: torch.dtype) -> Check:
    """Run a part once, at the smallest size that it takes, two frames."""
    with torch.inference_mode():
        out = _RUNS[part](files.part(part, dtype), dtype, torch.Generator().manual_seed(0))
    good = bool(torch.isfinite(out.float()).all())
    what = (
        f"{tuple(out.shape)}, standard deviation {out.float().std():.3g}"
        if good
        else "gives values that are not finite"
    )
    return Check(f"{part} pass", good, what)


def _scheduler(files: BundleFiles) -> Iterator[Check]:
    config = files.configs.get("scheduler")
    if config is None:
        return
    kind = config.get("prediction_type", "epsilon")
    detail = f"{kind}, σ {config.get('sigma_min')} to {config.get('sigma_max')}"
    yield Check("scheduler", kind == "v_prediction", detail, warning=kind != "v_prediction")


def _single(files: BundleFiles) -> Iterator[Check]:
    if files.single is None:
        return
    differ = layouts.encoder_differences(files.single)
    detail = (
        f"{len(differ)} tensors differ from the frame encoder's, which is used: {some(differ)}"
        if differ
        else "agree"
    )
    yield Check("both encoders", not differ, detail, warning=bool(differ))
    extra = layouts.leftover(files.single.stored, [files.weights(part).layout for part in files.parts])
    yield Check(
        "nothing else", not extra, f"not used: {some(extra)}" if extra else "no unknown tensors", bool(extra)
    )


def sha256(path: Path) -> str:
    """SHA-256 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
