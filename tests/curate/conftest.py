"""The made-up corpus that the tests of curation share."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def corpus() -> ModuleType:
    """The module corpus.py beside this file."""
    spec = importlib.util.spec_from_file_location("corpus", Path(__file__).with_name("corpus.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["corpus"] = module
    spec.loader.exec_module(module)
    return module
