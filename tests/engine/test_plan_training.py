"""The plan of a run: its parts against sums by hand, and what keys of the recipe do to them."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from svdcli.engine.adam import AdamW8bit
from svdcli.engine.plan_training import GPUS, UTILISATION, TrainingPlan, moment_bytes, plan_training


@pytest.fixture(scope="module")
def planned(toy: ModuleType) -> Any:
    """plan(sections) of the toy's image-to-video recipe, each made once."""
    made: dict[str, TrainingPlan] = {}

    def plan(**sections: dict[str, Any]) -> TrainingPlan:
        if repr(sections) not in made:
            made[repr(sections)] = plan_training(toy.toy_recipe(Path("none"), **sections))
        return made[repr(sections)]

    return plan


def test_the_parts(planned: Any) -> None:
    plan = planned()
    trained = plan.parameters["trained"]
    assert plan.parameters["total"] == trained > plan.parameters["temporal"] > 0
    assert plan.parameters["beside"] == 97_742_847  # SVD's autoencoder, as there is no other
    assert plan.memory["gradients"] == plan.memory["averages"] == 4 * trained
    assert plan.memory["optimizer"] == 8 * trained and plan.memory["weights"] >= 4 * trained
    assert plan.memory_total == sum(plan.memory.values()) and plan.host_memory == {}
    assert plan.clips_a_step == 1 and plan.step_flops > 3 * plan.forward_flops
    total = plan.step_flops * plan.num_steps
    h100 = next(g for g in plan.gpus if g.name == "H100")
    assert h100.days[8] == pytest.approx(total / (989e12 * UTILISATION / 2) / 86400 / 8) and h100.fits


def test_384_gpus_share_out_a_model(planned: Any) -> None:
    one = planned()
    many = planned(machine={"devices": 8, "nodes": 48, "strategy": "fsdp", "precision": "bf16-mixed"})
    assert many.num_devices == many.clips_a_step == 384
    assert many.memory["optimizer"] == one.memory["optimizer"] // 384
    assert many.memory["gathered"] > 0
    assert many.step_flops == pytest.approx(384 * one.step_flops, rel=0.01)


def test_frozen_layers_in_small_states(planned: Any) -> None:
    one = planned()
    home = planned(
        optim={"freeze": "spatial", "state": "host"},
        machine={"precision": "bf16-mixed", "checkpoint": "blocks"},
    )
    trained = home.parameters["trained"]
    others = planned(optim={"freeze": "temporal"}).parameters["trained"]
    assert home.parameters["temporal"] < trained and trained + others == one.parameters["trained"]
    assert home.memory["optimizer"] == 0 and home.host_memory == {"optimizer": 8 * trained}
    assert home.memory["weights"] < 0.95 * one.memory["weights"] and home.memory["gradients"] == 4 * trained


def test_bytes_of_moments_are_those_held() -> None:
    sizes = [4096, 5000, 64]
    parameters = [torch.nn.Parameter(torch.zeros(size)) for size in sizes]
    optimizer = AdamW8bit(parameters, lr=1.0, betas=(0.9, 0.99), weight_decay=0.0)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    tensors = [v for held in optimizer.state.values() for v in held.values() if isinstance(v, torch.Tensor)]
    assert moment_bytes(sizes, "8bit") == sum(t.numel() * t.element_size() for t in tensors)
    assert moment_bytes(sizes, "full") == 8 * sum(sizes)


def test_gpus_have_names_of_their_own() -> None:
    assert len({gpu.name for gpu in GPUS}) == len(GPUS) == 8


def test_deepspeed_shares_out_what_its_stage_says(planned: Any) -> None:
    one = planned()
    first, second, host = (
        planned(machine={"devices": 8, "strategy": "deepspeed", "zero_stage": stage}, optim={"state": state})
        for stage, state in ((1, "full"), (2, "full"), (2, "host"))
    )
    trained = one.parameters["trained"]
    assert first.memory["weights"] == second.memory["weights"] == one.memory["weights"]
    assert (
        first.memory["optimizer"] == second.memory["optimizer"] == 12 * trained // 8
    )  # and a copy of the share
    assert first.memory["gradients"] == 8 * second.memory["gradients"] == 4 * trained
    assert host.memory["optimizer"] == 0 and host.host_memory == {"optimizer": 12 * trained // 8}
