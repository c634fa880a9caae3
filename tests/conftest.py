"""What every test shares: few threads, none of the developer's settings, the GPU mark, the shared footage."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    """Set before torch or the hub are imported, as both read these only then; subprocesses inherit them."""
    parallel = config.getoption(
        "numprocesses", default=None
    )  # -n of pytest-xdist, whose workers inherit this
    os.environ.setdefault("OMP_NUM_THREADS", "1" if parallel else "2")
    os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="svd-test-hub-")
    for name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT", "NO_COLOR", "FORCE_COLOR"):
        os.environ.pop(name, None)


def pytest_unconfigure(config: pytest.Config) -> None:
    import shutil

    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="this machine has no CUDA device"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real footage and small weights that lies beside the repository, or a skip."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the folder ../shared/data (real clips and small weights) is absent beside this checkout")
    return folder
