"""The section `adapter`: its numbers, what it needs of the rest, and what may change when a run goes on."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from svdcli.errors import RecipeError
from svdcli.recipe.adapter import Lora
from svdcli.recipe.recipe import parse_recipe
from svdcli.recipe.resume import resume_recipe

TREE: dict[str, Any] = {
    "task": {"kind": "i2v", "vae": "svd", "start": "svd", "block_out_channels": [16, 32], "norm_num_groups": 8,
             "num_attention_heads": [1, 2], "attention_levels": [False, True], "context_dim": 16, "num_frames": [4],
             "fps": [5.0, 9.0]},
    "data": {"source": "clips", "held_out": ["a*"], "width": 64, "height": 64},
    "optim": {"lr": 1e-3},
    "run": {"folder": "runs/a", "num_steps": 10, "batch_size": 2},
    "adapter": {"kind": "lora"},
}  # fmt: skip


def changed(**keys: Any) -> dict[str, Any]:
    """The tree with `section__key=value`; None takes a key out."""
    tree = copy.deepcopy(TREE)
    for place, value in keys.items():
        section, _, name = place.partition("__")
        tree.setdefault(section, {})
        if value is None:
            tree[section].pop(name, None)
        else:
            tree[section][name] = value
    return tree


def test_defaults_are_the_papers() -> None:
    adapter = parse_recipe(TREE, "r").adapter
    assert adapter is not None and (adapter.rank, adapter.targets, adapter.scale) == (16, "temporal", 1.0)
    assert parse_recipe({k: v for k, v in TREE.items() if k != "adapter"}, "r").adapter is None


@pytest.mark.parametrize(
    ("keys", "scale"),
    [
        ({"rank": 4, "alpha": 8.0}, 2.0),
        ({"rank": 4, "alpha": 8.0, "use_rslora": True}, 4.0),
        ({"rank": 9, "use_rslora": True}, 3.0),
    ],
)
def test_the_scale(keys: dict[str, Any], scale: float) -> None:
    assert Lora(kind="lora", **keys).scale == scale


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"task__start": None}, "an adapter needs task.start"),
        ({"optim__freeze": "spatial"}, "leave out optim.freeze"),
        ({"machine__strategy": "fsdp"}, "auto or ddp"),
        (
            {"adapter__targets": "("},
            "adapter.targets: neither temporal, spatial, all nor a regular expression",
        ),
        ({"adapter__rank": 0}, "adapter.rank"),
        ({"adapter__rnk": 4}, "there is no key adapter.rnk"),
        ({"adapter__dropout": 1.0}, "adapter.dropout"),
        ({"machine__offload": True}, "offload moves what checkpoint keeps"),
    ],
)
def test_what_it_cannot_be(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(changed(**keys), "r")
    assert said in caught.value.message


def resume(began: dict[str, Any], given: dict[str, Any]) -> tuple[Any, list[str]]:
    return resume_recipe(
        json.dumps(parse_recipe(began, "r").model_dump(mode="json")), parse_recipe(given, "r")
    )


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"adapter__rank": 8}, "began with adapter.rank = 16, not 8"),
        ({"adapter__targets": "all"}, 'began with adapter.targets = "temporal", not "all"'),
        ({"task__start": "svd-xt"}, 'began with task.start = "svd", not "svd-xt"'),
    ],
)
def test_a_run_goes_on_with_the_adapter_that_it_began_with(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        resume(TREE, changed(**keys))
    assert said in caught.value.message


def test_an_adapter_does_not_come_or_go() -> None:
    plain = {k: v for k, v in TREE.items() if k != "adapter"}
    with pytest.raises(RecipeError, match="trains an adapter, and this recipe all weights"):
        resume(TREE, plain)
    with pytest.raises(RecipeError, match="trains all weights, and this recipe an adapter"):
        resume(plain, TREE)
    recipe, changes = resume(TREE, changed(optim__lr=1e-4))
    assert recipe.adapter == parse_recipe(TREE, "r").adapter and "optim.lr" in changes[0]
