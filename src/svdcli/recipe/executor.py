"""The section `executor` of a curation recipe: what runs the stages, and the limits of an item."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from svdcli.recipe.section import Positive, Section

Above = Annotated[float, Field(gt=0)]


class Executor(Section):
    """What runs the stages, and how far an item may go. It does not change what comes out."""

    engine: Literal["pool", "ray"] = "pool"
    """processes of this machine, or Ray Data, here or on a cluster"""
    workers: Positive | None = None
    """processes, one core each; absent: one a core, and with Ray one a CPU that the cluster has"""
    address: str | None = None
    """of a Ray cluster, such as auto or ray://head:10001; absent: a Ray of this machine's own"""
    device: str = "auto"
    """what annotators run on: auto, cpu or cuda"""
    deadline: Above = 120.0
    """seconds that an item may take before its length is known, and what it gets on top of `per_second`"""
    per_second: Above = 20.0
    """seconds that each second of its footage adds"""
    memory_gib: Above = 4.0
    """resident memory of a worker: one that takes more is killed, and its item given up after a second time"""
    model_workers: Positive = 1
    """processes for annotators that load a large model, as many as the GPU, or the memory, takes"""
    model_gib: Above = 64.0
    """resident memory of each of those"""
    source_gib: Above = 64.0
    """a tar's member or a URL with more than this is not taken, GiB"""
    recycle: Positive = 200
    """items after which a worker is replaced, against leaks of decoders"""
    batches_a_task: Positive = 20
    """items that a task of Ray has: its blocks cost about 40 ms each"""
    retry_failed: bool = False
    """try again what failed in an earlier run"""
