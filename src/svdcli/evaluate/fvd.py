"""Fréchet video distance between two sets, with all that a reader needs to believe it, or not to.

Beside the figure stand always the number of videos, the kernel distance with its interval (which few videos do not
bias), and the distance of real videos to other real ones at the same number: what is not clearly above that is noise.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from svdcli.errors import InputError
from svdcli.evaluate.features import FeatureSet
from svdcli.evaluate.frechet import Array, frechet_distance, kernel_estimate
from svdcli.evaluate.networks import Network
from svdcli.evaluate.protocols import Protocol
from svdcli.io.manifest import versions

FEWEST = 64
"""Below this many videos in a set, the Fréchet distance is mostly bias."""
NUM_SPLITS = 8
"""Random halves of the real set whose mean is the floor."""
KIND = "svd-eval-fvd"


def compare_sets(
    real: FeatureSet, generated: FeatureSet, protocol: Protocol, network: Network, force: bool = False
) -> dict[str, Any]:
    """Two sets' features -> the whole result, ready for JSON.

    Raises InputError for fewer than FEWEST videos in a set, unless forced (two are the least).
    """
    numbers = len(real.names), len(generated.names)
    lost = {**real.left_out, **generated.left_out}
    try:
        require_enough(*numbers, force)
    except InputError as error:
        if lost:
            name, reason = next(iter(lost.items()))
            error.hint = f"{len(lost)} are left out, such as {Path(name).name}: {reason}. {error.hint}"
        raise
    if protocol.equal_numbers:
        real, generated = real.thinned(min(numbers)), generated.thinned(min(numbers))
    kernel = kernel_estimate(real.features, generated.features)
    return {
        "kind": KIND,
        "fvd": frechet_distance(real.features, generated.features),
        "kernel_distance": kernel.to_dict() | {"confidence": 0.95},
        "floor": real_floor(real.features, generated.features),
        "num_real": len(real.names),
        "num_generated": len(generated.names),
        "protocol": asdict(protocol),
        "protocol_hash": protocol.digest(network.sha256),
        "network": {"name": network.name, "sha256": network.sha256, "standard": network.standard},
        "real": describe(real),
        "generated": describe(generated),
        "cautions": cautions(real, generated, protocol, network)
        + treatments(real, generated, protocol, numbers),
        "versions": versions() | {"numpy": np.__version__},
    }


def require_enough(num_real: int, num_generated: int, force: bool) -> None:
    """Raises InputError for fewer than FEWEST videos in a set, unless forced; two are always needed."""
    if min(num_real, num_generated) < 2:
        raise InputError(
            f"A distance between sets needs two videos in each, not {num_real} and {num_generated}.",
            "Give more videos.",
        )
    if min(num_real, num_generated) < FEWEST and not force:
        raise InputError(
            f"FVD of {num_real} real and {num_generated} generated videos is mostly bias: {FEWEST} of each are the least.",
            "Give more, or add --force for a figure that compares with nothing.",
        )


def real_floor(real: Array, generated: Array, num_splits: int = NUM_SPLITS) -> dict[str, Any] | None:
    """The mean FVD of real videos to *other* real videos, and of generated ones to real ones, at one number each.

    The number is the generated set's where the real set has twice as many, else half of the real set; both figures
    are printed for it, so they compare whatever it is. None where there are fewer than four real videos.
    """
    num = min(len(generated), len(real) // 2)
    if num < 2:
        return None
    rng = np.random.default_rng(0)
    own, other = [], []
    for _ in range(num_splits):
        order = rng.permutation(len(real))
        first, second = real[order[:num]], real[order[num : 2 * num]]
        own.append(frechet_distance(first, second))
        other.append(frechet_distance(first, generated[rng.permutation(len(generated))[:num]]))
    return {
        "num": num,
        "real_to_real": float(np.mean(own)),
        "real_to_real_sd": float(np.std(own, ddof=1)),
        "real_to_generated": float(np.mean(other)),
        "real_to_generated_sd": float(np.std(other, ddof=1)),
        "num_splits": num_splits,
    }


def describe(videos: FeatureSet) -> dict[str, Any]:
    """A set in a few numbers."""
    heights, widths = zip(*videos.sizes, strict=True)
    return {
        "digest": videos.digest,
        "fps": [min(videos.fps), float(np.median(videos.fps)), max(videos.fps)],
        "height": [min(heights), max(heights)],
        "width": [min(widths), max(widths)],
        "left_out": videos.left_out,
        "num_repeated": len(videos.hashes) - len(set(videos.hashes)),
    }


def cautions(real: FeatureSet, generated: FeatureSet, protocol: Protocol, network: Network) -> list[str]:
    """What makes this figure differ from others that bear the same name; a sentence each."""
    found = []
    num = len(real.names), len(generated.names)
    if protocol.num_videos and num != (protocol.num_videos,) * 2:
        found.append(
            f"{protocol.name} asks for {protocol.num_videos} videos in each set, and these are {num[0]} and {num[1]}: "
            "not comparable with published figures"
        )
    if min(num) < FEWEST:
        found.append(
            f"fewer than {FEWEST} videos: the Fréchet distance is mostly bias; read the kernel distance"
        )
    if not network.standard:
        found.append(
            f"{network.name} is not the I3D file that papers use: not comparable with published figures"
        )
    rates = float(np.median(real.fps)), float(np.median(generated.fps))
    if protocol.fps is None and abs(rates[0] - rates[1]) > 0.05 * max(rates):
        found.append(
            f"frames are taken one after another, and the sets run at {rates[0]:.4g} and {rates[1]:.4g} fps: "
            "their speeds of motion differ"
        )
    if protocol.fps and min(rates) < 0.95 * protocol.fps:
        found.append(f"videos of {min(rates):.4g} fps are read at {protocol.fps:g}: frames repeat")
    if protocol.size is None and len(set(real.sizes) | set(generated.sizes)) > 1:
        found.append("the videos differ in size, and I3D squashes each to 224x224")
    for name, videos in (("real", real), ("generated", generated)):
        if repeated := len(videos.hashes) - len(set(videos.hashes)):
            found.append(f"{repeated} of the {name} videos are copies of others")
        if videos.left_out:
            found.append(f"{len(videos.left_out)} of the {name} videos are left out (see left_out)")
    if shared := len(set(real.hashes) & set(generated.hashes)):
        found.append(f"{shared} videos are in both sets")
    return found


def treatments(
    real: FeatureSet, generated: FeatureSet, protocol: Protocol, numbers: tuple[int, int]
) -> list[str]:
    """How sets that differ are made alike; a sentence each. `numbers`: of each set before it was thinned."""
    found = []
    for name, videos, num in (("real", real, numbers[0]), ("generated", generated, numbers[1])):
        if len(videos.names) < num:
            found.append(
                f"{len(videos.names)} of the {num} {name} videos are used, as the other set has no more: chosen by their content"
            )
    if protocol.size is not None and set(real.sizes) != set(generated.sizes):
        height, width = protocol.size
        found.append(
            f"the sets differ in size ({_sizes(real)}; {_sizes(generated)}): every frame is scaled to cover {width}x{height}, "
            "and its middle kept"
        )
    rates = float(np.median(real.fps)), float(np.median(generated.fps))
    if protocol.fps and abs(rates[0] - rates[1]) > 0.05 * max(rates):
        found.append(
            f"the sets run at {rates[0]:.4g} and {rates[1]:.4g} fps: "
            f"of both the frames nearest to {protocol.fps:g} a second are taken"
        )
    return found


def _sizes(videos: FeatureSet) -> str:
    told = [f"{width}x{height}" for height, width in sorted(set(videos.sizes))]
    return ", ".join(told[:3]) + (" ..." if len(told) > 3 else "")
