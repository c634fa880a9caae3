"""Noise levels to sample at: descending, float32, ending in 0.

Every schedule of n steps has n + 1 levels, from sigma_max to sigma_min and then 0. Computed in float64 and
rounded once, so that it equals what other implementations feed to the same network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from svdcli.errors import UsageError

SIGMA_MIN = 0.002
SIGMA_MAX = 700.0
RHO = 7.0
MAX_STEPS = 10_000


def karras(
    num_steps: int, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX, rho: float = RHO
) -> Tensor:
    """EDM eq. 5: evenly spaced in sigma^(1/rho); the schedule of SVD. -> (num_steps + 1,)"""
    _check_range(num_steps, sigma_min, sigma_max)
    if not (math.isfinite(rho) and rho > 0):
        raise UsageError(f"rho is {rho}, but must be a positive number.", "EDM and SVD use 7.")
    hi, lo = (torch.tensor(s, dtype=torch.float64) ** (1 / rho) for s in (sigma_max, sigma_min))
    return _finish((hi + _ramp(num_steps) * (lo - hi)) ** rho)


def exponential(num_steps: int, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX) -> Tensor:
    """Evenly spaced in ln sigma: the limit of `karras` for large rho. -> (num_steps + 1,)"""
    _check_range(num_steps, sigma_min, sigma_max)
    hi, lo = math.log(sigma_max), math.log(sigma_min)
    return _finish((hi + _ramp(num_steps) * (lo - hi)).exp())


def uniform(num_steps: int, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX) -> Tensor:
    """Evenly spaced in sigma: `karras` with rho = 1. -> (num_steps + 1,)"""
    _check_range(num_steps, sigma_min, sigma_max)
    return _finish(sigma_max + _ramp(num_steps) * (sigma_min - sigma_max))


def custom(levels: Sequence[float]) -> Tensor:
    """The levels as given: positive, strictly descending; the final 0 may be left out. -> (n + 1,)"""
    values = [float(level) for level in levels]
    if values and values[-1] == 0:
        values.pop()
    if not values:
        raise UsageError("schedule has no noise level above 0.", "Give a list such as 700,100,10,1,0.")
    for level in values:
        if not (math.isfinite(level) and level > 0):
            raise UsageError(f"schedule contains {level:g}, which is no positive noise level.", _LIST_HINT)
    for before, after in zip(values, values[1:], strict=False):
        if after >= before:
            raise UsageError(f"schedule does not descend: {after:g} follows {before:g}.", _LIST_HINT)
    _check_steps(len(values))
    return _finish(torch.tensor(values, dtype=torch.float64))


SCHEDULES: dict[str, Callable[..., Tensor]] = {
    "karras": karras,
    "exponential": exponential,
    "uniform": uniform,
}
_LIST_HINT = "List the noise levels from the largest to the smallest, such as 700,100,10,1,0."


def make_schedule(
    schedule: str | Sequence[float],
    num_steps: int,
    sigma_min: float = SIGMA_MIN,
    sigma_max: float = SIGMA_MAX,
    rho: float = RHO,
) -> Tensor:
    """The schedule of a name, or of a list of levels (numbers, or one string "700,100,10,1").

    A list says everything itself: num_steps, sigma_min, sigma_max and rho are then not used, and the number
    of steps is that of its levels. `rho` belongs to karras. Raises UsageError naming the option.
    """
    if not isinstance(schedule, str):
        return custom(schedule)
    if schedule == "karras":
        return karras(num_steps, sigma_min, sigma_max, rho)
    if schedule in SCHEDULES:
        return SCHEDULES[schedule](num_steps, sigma_min, sigma_max)
    try:
        return custom([float(level) for level in schedule.split(",")])
    except ValueError:
        names = ", ".join(SCHEDULES)
        raise UsageError(f"schedule {schedule!r} is unknown.", f"Choose {names}, or list levels.") from None


def _ramp(num_steps: int) -> Tensor:
    return torch.linspace(0, 1, num_steps, dtype=torch.float64)


def _check_steps(num_steps: int) -> None:
    if not 1 <= num_steps <= MAX_STEPS:
        raise UsageError(f"steps is {num_steps}, but must be 1 to {MAX_STEPS}.", "SVD uses 25, SVD-XT 30.")


def _check_range(num_steps: int, sigma_min: float, sigma_max: float) -> None:
    _check_steps(num_steps)
    for name, value in (("sigma_min", sigma_min), ("sigma_max", sigma_max)):
        if not (math.isfinite(value) and value > 0):
            raise UsageError(f"{name} is {value}, but must be a positive number.", "SVD uses 0.002 to 700.")
    if sigma_min >= sigma_max:
        raise UsageError(
            f"sigma_min is {sigma_min:g}, not below sigma_max, {sigma_max:g}.", "SVD uses 0.002 to 700."
        )


def _finish(levels: Tensor) -> Tensor:
    """Positive float64 levels -> float32 with the final 0, still strictly descending."""
    sigmas = torch.cat([levels, levels.new_zeros(1)]).float()
    # Two levels that round to one make a step of length 0, where multistep samplers divide by it.
    if not (sigmas.isfinite().all() and (sigmas.diff() < 0).all()):
        raise UsageError(
            "schedule has noise levels that float32 cannot hold apart (sigma_min, sigma_max, rho, steps).",
            "Take fewer steps or a wider range; SVD uses 0.002 to 700 with rho 7.",
        )
    return sigmas
