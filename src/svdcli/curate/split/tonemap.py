"""High dynamic range to standard: PQ and HLG in BT.2020 to BT.709 pixels of 8 bits, by the equations of BT.2100."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from svdcli.curate.rows import Hdr
from svdcli.curate.split.opening import Picture

WHITE_NITS = 203.0
"""luminance of diffuse white (BT.2408), which becomes 0.8 of the standard signal's light"""
PEAK_NITS = 1000.0
"""luminance that becomes the standard signal's white, and of the display that HLG is shown on"""
# BT.2020 -> BT.709 primaries, linear light (BT.2087)
_TO_709 = np.array(
    [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]],
    np.float32,
)


def tonemap(signal: npt.NDArray[np.uint16], hdr: Hdr) -> Picture:
    """R'G'B' (H, W, 3) of 16 bits in BT.2020 with the transfer `hdr` -> (H, W, 3) uint8 in BT.709."""
    nits: npt.NDArray[np.float32] = _curve(hdr)[signal]
    if hdr == "hlg":  # the display's own gamma, on luminance
        luminance = nits @ np.array([0.2627, 0.6780, 0.0593], np.float32)
        nits = nits * (PEAK_NITS * np.maximum(luminance, 1e-6)[..., None] ** np.float32(0.2)).astype(
            np.float32
        )
    light = np.maximum(nits @ _TO_709.T, 0) / WHITE_NITS
    brightest = np.maximum(light.max(-1, keepdims=True), 1e-6)
    peak = PEAK_NITS / WHITE_NITS
    # Reinhard's curve, extended so that the peak becomes white; on the largest channel, so that hues stay
    mapped = brightest * (1 + brightest / peak**2) / (1 + brightest)
    light = np.clip(light * mapped / brightest, 0, 1)
    return np.rint(255 * light ** (1 / 2.4)).astype(np.uint8)


@cache
def _curve(hdr: Hdr) -> npt.NDArray[np.float32]:
    """Signal 0..65535 -> PQ: nits of the display; HLG: light of the scene, 0..1 (BT.2100, tables 4 and 5)."""
    signal = np.arange(65536) / 65535
    if hdr == "hlg":
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
        return light.astype(np.float32)
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    root = signal ** (1 / m2)
    return (10000 * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)).astype(np.float32)
