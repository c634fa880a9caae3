from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from svdcli.curate.run.engines import engine
from svdcli.curate.run.workers import Limits, Outcome, Pool
from svdcli.errors import MachineError
from svdcli.recipe.curation import Executor

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from standins import Behave, KilledAmid  # noqa: E402


def work(items: list[str], folder: Path, workers: int = 2, **limits: float) -> dict[str, Outcome]:
    with Pool(Behave(str(folder)), workers, Limits(**limits)) as pool:  # type: ignore[arg-type]
        outcomes = list(pool.map(items))
    assert sorted(o.item for o in outcomes) == sorted(items)
    return {o.item: o for o in outcomes}


def test_each_item_costs_itself_at_most(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    items = ["a", "crash", "bad", "bug", "once", "print", "eat", "b", "threads"]
    found = work(items, tmp_path, seconds=20, memory=400 << 20)
    assert [found[item].value for item in ("a", "b", "once")] == ["did a", "did b", "did once"]
    assert found["a"].cpu_seconds >= 0 and found["a"].fault == ""
    assert found["threads"].value == {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    assert (found["bad"].fault, found["bad"].reason) == ("input", "It has no video stream.")
    assert found["bug"].fault == "error"
    assert found["bug"].reason.startswith("ValueError: no such codec (standins.py:")
    assert found["crash"].fault == "crash" and "SIGSEGV, 2 times" in found["crash"].reason
    assert found["eat"].fault == "memory" and "MiB of memory" in found["eat"].reason
    tried = (tmp_path / "tried").read_text().split()
    assert [tried.count(item) for item in ("a", "bad", "bug", "once", "crash", "eat")] == [1, 1, 1, 2, 2, 2]
    assert capfd.readouterr() == ("", "")


def test_a_hanging_child_dies_with_all_that_it_started(tmp_path: Path) -> None:
    found = work(["hang", "a"], tmp_path, workers=1, seconds=1.0, attempts=1)
    assert found["hang"].fault == "deadline" and "not done within 1 s" in found["hang"].reason
    assert found["a"].value == "did a"
    pid = int((tmp_path / "grandchild").read_text())
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_what_a_lost_child_was_writing_is_removed(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "whole.mp4").write_bytes(b"whole")
    executor = Executor(workers=1)
    with engine(KilledAmid(str(tmp_path)), tmp_path, executor) as run:
        (entry,) = run(["a"])
        assert "SIGKILL" in entry.reason
        assert [path.name[:3] for path in tmp_path.glob("clips/.*")] == [".a."] * 2  # it was tried twice
    assert [path.name for path in (tmp_path / "clips").iterdir()] == ["whole.mp4"]


def test_the_deadline_grows_with_the_footage(tmp_path: Path) -> None:
    found = work(["long:10", "long:0.01"], tmp_path, workers=1, seconds=0.7, per_second=1.0, attempts=1)
    assert found["long:10"].fault == "" and found["long:0.01"].fault == "deadline"


def test_children_are_replaced_and_items_taken_only_as_they_come_free(tmp_path: Path) -> None:
    taken = itertools.count()
    with Pool(Behave(), 1, Limits(recycle=2)) as pool:
        outcomes = pool.map(f"pid:{next(taken)}" for _ in itertools.count())  # endless
        pids = [next(outcomes).value for _ in range(4)]
    assert pids[0] == pids[1] != pids[2] == pids[3] and next(taken) <= 7
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_a_pool_that_was_left_early_begins_anew(tmp_path: Path) -> None:
    with Pool(Behave(str(tmp_path)), 2, Limits()) as pool:
        outcomes = pool.map(["a", "hang", "b"])
        assert next(outcomes).value == "did a"
        outcomes.close()  # type: ignore[attr-defined]
        assert [outcome.value for outcome in pool.map(["c"])] == ["did c"]


def test_what_keeps_children_from_beginning_ends_the_run() -> None:
    with pytest.raises(MachineError, match="no model"), Pool(Behave(unable="machine"), 1, Limits()) as pool:
        list(pool.map(["a"]))
    with pytest.raises(MachineError, match="die before"), Pool(Behave(unable="crash"), 1, Limits()) as pool:
        list(pool.map(["a"]))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills children with their parent")
def test_children_die_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(HERE)!r})\n"
        "from standins import Behave\nfrom svdcli.curate.run.workers import Limits, Pool\n"
        "if __name__ == '__main__':\n"
        f"    with Pool(Behave({str(tmp_path)!r}), 1, Limits()) as pool:\n"
        "        for outcome in pool.map(['pid', 'hang']):\n            print(outcome.value, flush=True)\n"
    )
    script = tmp_path / "main.py"
    script.write_text(code)
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    while not (tmp_path / "grandchild").exists():
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    for _ in range(50):
        if not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.1)
    else:
        raise AssertionError("the child outlived its parent")
    os.kill(int((tmp_path / "grandchild").read_text()), signal.SIGKILL)
