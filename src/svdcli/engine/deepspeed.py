"""DeepSpeed's ZeRO (Rajbhandari et al. 2020, 1910.02054), made to do this loop's arithmetic and no more.

What it is: AdamW's moments (stage 1), and the summed gradients too (stage 2), shared out over the processes; the weights are
whole in each. Accumulation, clipping, rates, averages and checkpoints stay the loop's: weights and gradients are float32, and
half precision is autocast's, as under every strategy. What it is not: stage 3, which shares out the weights as well; that is
`machine.strategy = "fsdp"`.

One thing differs from the other strategies: a weight that a step leaves unused counts as one of gradient zero, where they
pass it over, so that it decays and follows its momentum.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
from lightning_fabric.plugins import MixedPrecision, Precision
from lightning_fabric.strategies import DDPStrategy
from lightning_fabric.strategies.strategy import _BackwardSyncControl
from torch import Tensor, nn

from svdcli.errors import MachineError

MOMENTS = ("exp_avg", "exp_avg_sq")


def require_deepspeed() -> None:
    """Raise MachineError where the package is absent."""
    if importlib.util.find_spec("deepspeed") is None:
        raise MachineError(
            "machine.strategy = deepspeed needs the package deepspeed, which is not installed.",
            'pip install "svdcli[deepspeed]", or set it to ddp or fsdp.',
        )


class Zero(DDPStrategy):
    """Fabric's own `DeepSpeedStrategy` clips, accumulates and rounds weights as DeepSpeed does, and refuses a CPU; so this."""

    def __init__(self, stage: int, precision: Precision, offload: bool = False) -> None:
        """stage: 1 or 2. offload: moments live, and move on, in the host's memory."""
        super().__init__(precision=precision)
        self._backward_sync_control = _Boundary()
        self._stage, self._offload = stage, offload
        self._engine: Any = None

    @property
    def model(self) -> Any:
        """The engine, whose step is the optimizer's: so Fabric looks for it."""
        return self._engine

    def setup_module_and_optimizers(
        self, module: nn.Module, optimizers: list[torch.optim.Optimizer], scheduler: Any = None
    ) -> tuple[Any, list[Any], Any]:
        with redirect_stdout(sys.stderr):  # where DeepSpeed's log goes from now on: stdout is data
            import deepspeed

            deepspeed.utils.logging.logger.setLevel(logging.ERROR)
            os.environ |= {"LOCAL_RANK": str(self.local_rank), "RANK": str(self.global_rank)}
            os.environ |= {"WORLD_SIZE": str(self.world_size)}
            deepspeed.init_distributed(dist_init_required=False)  # takes the one that is there
            self._engine, optimizer, _, _ = deepspeed.initialize(
                args=Namespace(device_rank=self.root_device.index or 0),
                model=module,
                model_parameters=[p for p in module.parameters() if p.requires_grad],
                optimizer=optimizers[0],
                config=self._config(),
                dist_init_required=False,
            )
        return self._engine, [optimizer], scheduler

    def _config(self) -> dict[str, Any]:
        sharing: dict[str, Any] = {"stage": self._stage}
        if self._offload:
            sharing["offload_optimizer"] = {"device": "cpu", "pin_memory": self.root_device.type == "cuda"}
        mixed = isinstance(self.precision, MixedPrecision)
        return {
            "zero_optimization": sharing,
            "zero_allow_untested_optimizer": True,  # torch's AdamW
            "zero_force_ds_cpu_optimizer": False,  # DeepSpeed's own would have to be compiled
            "train_micro_batch_size_per_gpu": 1,  # is told to its log alone
            # The engine leaves an autocast that surrounds it, for its own. No layer's gradients travel in half precision.
            "torch_autocast": {"enabled": mixed, "dtype": "bfloat16", "lower_precision_safe_modules": []},
        }

    def backward(self, tensor: Tensor, module: nn.Module | None, *args: Any, **kwargs: Any) -> None:
        self._engine.backward(tensor, *args, **kwargs)

    def clip_gradients_norm(
        self,
        module: Any,
        optimizer: Any,
        max_norm: float | int,
        norm_type: float | int = 2.0,
        error_if_nonfinite: bool = True,
    ) -> Tensor:
        """-> the norm of the mean gradients; DeepSpeed brings them down to `max_norm` in the step that follows."""
        assert norm_type == 2.0 and not error_if_nonfinite
        optimizer.clip_grad = float(max_norm)
        norm = torch.as_tensor(optimizer.scaled_global_norm())
        return torch.where(norm < 0, torch.inf, norm)  # as it marks one that is not finite


class _Boundary(_BackwardSyncControl):
    """Tells the engine which batch is a step's last."""

    @contextmanager
    def no_backward_sync(self, module: Any, enabled: bool) -> Iterator[None]:  # type: ignore[override]
        module.set_gradient_accumulation_boundary(not enabled)
        yield


# ---- the moments, whole for a checkpoint and shared out again -------------------------------------------


def is_zero(optimizer: Any) -> bool:
    """Whether it is DeepSpeed's, each process of which holds a share of the moments."""
    return hasattr(optimizer, "single_partition_of_fp32_groups")


def moments(optimizer: Any, parameter: nn.Parameter) -> dict[str, Any]:
    """What torch's AdamW would hold of the parameter, whole, in host memory; collective. Empty before the first step."""
    share = _share(optimizer, parameter)
    state = optimizer.optimizer.state.get(share)
    if not state:
        return {}
    found = {"step": state["step"].clone()}
    for key in MOMENTS:
        whole = torch.zeros(parameter.numel(), device=parameter.device)
        for here, there in _addresses(parameter):
            whole[here] = state[key][there].to(whole.device)
        torch.distributed.all_reduce(whole)
        found[key] = whole.view(parameter.shape).cpu()
    return found


def load_moments(optimizer: Any, saved: Mapping[nn.Parameter, Mapping[str, Any]]) -> None:
    """Take in what each parameter holds, as `moments` gives it, and the network's weights as they are now."""
    optimizer.refresh_fp32_params()
    step = max((float(held["step"]) for held in saved.values() if held), default=None)
    if step is None:
        return
    for share in optimizer.single_partition_of_fp32_groups:
        zeros = {key: torch.zeros_like(share.detach()) for key in MOMENTS}
        optimizer.optimizer.state[share] = {"step": torch.tensor(step)} | zeros
    for parameter, held in saved.items():
        state = optimizer.optimizer.state[_share(optimizer, parameter)]
        for key in MOMENTS if held else ():
            for here, there in _addresses(parameter):
                state[key][there] = held[key].reshape(-1)[here].to(state[key].device)


def _share(optimizer: Any, parameter: nn.Parameter) -> Tensor:
    """This process's part of the weights of the parameter's group, flat: what AdamW is given to step."""
    groups = optimizer.bit16_groups
    index = next(i for i, group in enumerate(groups) if any(parameter is p for p in group))
    return optimizer.single_partition_of_fp32_groups[index]


def _addresses(parameter: Any) -> Iterator[tuple[slice, slice]]:
    """Where the part of the parameter that this process steps lies in the parameter, and in the share; none where it has none."""
    if parameter._hp_mapping is not None:
        both = (parameter._hp_mapping.lp_fragment_address, parameter._hp_mapping.hp_fragment_address)
        here, there = (slice(a.start, a.start + a.numel) for a in both)
        yield here, there
