"""Ray: the arithmetic that keeps it from hanging, and a run that loses a worker."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from footage import curate, results, write_source  # noqa: E402

from svdcli.curate.run.accounts import accounts  # noqa: E402
from svdcli.curate.run.ray_engine import preflight  # noqa: E402
from svdcli.errors import MachineError  # noqa: E402


def test_as_many_workers_as_ray_has_room_for() -> None:
    nodes = [{"CPU": 4.0}, {"CPU": 2.0, "GPU": 1.0}]
    assert preflight(nodes, {"CPU": 6.0}, None) == 6
    assert preflight(nodes, {"CPU": 3.0}, None) == 3  # others hold the rest
    assert preflight(nodes, {"CPU": 6.0}, 5) == 5
    assert preflight(nodes, {"CPU": 6.0, "GPU": 1.0}, None, gpus=1.0) == 1


@pytest.mark.parametrize(
    ("nodes", "free", "wanted", "gpus"),
    [
        ([{"CPU": 2.0}], {"CPU": 2.0}, 3, 0.0),
        ([{"CPU": 2.0}], {"CPU": 0.5}, None, 0.0),
        ([{"CPU": 0.9}] * 4, {"CPU": 3.6}, 1, 0.0),  # no node has a whole one
        ([{"CPU": 8.0}], {"CPU": 8.0}, 1, 1.0),
        ([{"CPU": 8.0, "GPU": 1.0}], {"CPU": 8.0, "GPU": 1.0}, 2, 1.0),
    ],
)
def test_what_ray_would_wait_for_is_refused(
    nodes: list[dict[str, float]], free: dict[str, float], wanted: int | None, gpus: float
) -> None:
    with pytest.raises(MachineError, match="wait for ever"):
        preflight(nodes, free, wanted, gpus)


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_no_input(tmp_path: Path) -> None:
    """Every actor is killed once, in the middle of its work; the pool then finds nothing left to do."""
    pytest.importorskip("ray", reason="Ray is not installed")
    sources = tmp_path / "in"
    sources.mkdir()
    for number in range(6):
        write_source(sources / f"{number}.mp4", number)
    killed: list[int] = []
    watcher = threading.Thread(target=kill_an_actor, args=(tmp_path / "ray", killed), daemon=True)
    watcher.start()
    changes = ("executor.engine=ray", "executor.batches_a_task=2")
    curate(str(sources), tmp_path / "ray", 1, *changes)
    assert killed
    assert accounts(tmp_path / "ray").inputs == {"split": 6, "duplicate": 0, "failed": 0, "removed": 0}
    before = {path.name for path in (tmp_path / "ray/journal").iterdir()}
    curate(str(sources), tmp_path / "ray", 1)  # the pool goes on from Ray's journal
    assert {path.name for path in (tmp_path / "ray/journal").iterdir()} == before
    curate(str(sources), tmp_path / "pool", 1)
    assert results(tmp_path / "pool") == results(tmp_path / "ray")


@pytest.mark.slow
def test_two_nodes_make_what_one_pool_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes of one CPU each, whose workers stand in another folder than the run, which is named by a relative path."""
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    from ray.cluster_utils import Cluster

    (tmp_path / "in").mkdir()
    for number in range(6):
        write_source(tmp_path / "in" / f"{number}.mp4", number)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        monkeypatch.chdir(tmp_path)
        changes = (
            "executor.engine=ray",
            f"executor.address={cluster.address!r}",
            "executor.batches_a_task=1",
        )
        curate("in", Path("ray"), 2, *changes)
    finally:
        ray.shutdown()
        cluster.shutdown()
    actors = {path.name for path in (tmp_path / "ray/journal").iterdir()}
    assert len(actors) >= 2
    curate("in", Path("pool"), 1)
    assert results(tmp_path / "pool") == results(tmp_path / "ray")


def kill_an_actor(folder: Path, killed: list[int]) -> None:
    """Once the first source is journalled, kill the actor that did it."""
    while not killed:
        time.sleep(0.05)
        if any(path.stat().st_size for path in (folder / "journal").glob("*.jsonl")):
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.NoSuchProcess):  # it ended since they were listed
                    if "MapWorker" in " ".join(process.cmdline()) or "MapBatches" in process.name():
                        process.kill()
                        killed.append(process.pid)
