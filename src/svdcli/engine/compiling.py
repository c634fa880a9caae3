"""torch.compile, block by block.

A network of blocks of few kinds is compiled in a fraction of the time that it takes whole, and runs as fast for it. Names,
state dicts and copies stay as they are: what is compiled is the call of each block, not the network.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path

import torch
from torch import nn

from svdcli.engine.recompute import blocks_of
from svdcli.errors import MachineError

VARIANTS = 512
"""Blocks of one kind share their code, of which torch compiles no more than eight variants unless it is told."""


def compile_blocks(network: nn.Module, backend: str = "inductor") -> None:
    """Compile each block when it is first called, and once more for each other size and length of clips.

    To be called after `recompute_blocks`, and before the network is wrapped or shared out.
    """
    for name in ("recompile_limit", "accumulated_recompile_limit"):
        setattr(torch._dynamo.config, name, max(VARIANTS, getattr(torch._dynamo.config, name)))
    for block in blocks_of(network):
        block.compile(dynamic=False, backend=backend)


def require_compiler() -> None:
    """Raise MachineError where torch.compile has nothing to build its code with."""
    compiler = any(map(shutil.which, filter(None, (os.environ.get("CXX"), "g++", "clang++", "cl"))))
    headers = (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file()
    if not (compiler and headers):
        missing = "Python's headers" if compiler else "a C++ compiler"
        raise MachineError(
            f"machine.compile needs {missing}, and this machine has none.",
            "Install it (on Debian: apt install g++ python3-dev), or leave machine.compile out.",
        )
