"""`svd curate` through `main`: the way from a folder to a dataset, what it says, and each exit code."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from svdcli.cli.app import main

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "curate"))
from footage import RECIPE, write_source  # noqa: E402

Run = Callable[..., tuple[int, str, str]]
CHANGES = [word for change in RECIPE for word in ("--set", change)]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        code = main(["curate", *map(str, arguments)])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    for number in range(3):
        write_source(folder / f"{number}.mp4", number)
    (folder / "bad.mp4").write_bytes(b"no video")
    (folder / "notes.txt").write_text("no video either")
    return folder


@pytest.fixture(scope="module")
def curated(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """A folder that `svd curate run --json` made, and what it answered."""
    import contextlib
    import io

    folder, answer = tmp_path_factory.mktemp("curated") / "out", io.StringIO()
    with contextlib.redirect_stdout(answer):
        assert main(["curate", "run", str(sources), str(folder), "--json", "--workers", "1", *CHANGES]) == 0
    return folder, json.loads(answer.getvalue())


@pytest.mark.slow
def test_run_makes_a_dataset_and_its_sums_are_the_input(curated: tuple[Path, dict[str, object]]) -> None:
    folder, told = curated
    assert (
        told["inputs"] == {"split": 3, "duplicate": 0, "failed": 1, "removed": 0} and told["left_aside"] == 1
    )
    assert sum(told["seconds"].values()) == pytest.approx(told["total_seconds"])  # type: ignore[attr-defined]
    dropped = sum(step["clips"] for step in told["filters"])  # type: ignore[attr-defined]
    kept = told["kept"]["clips"]  # type: ignore[index]
    assert kept + dropped == told["clips"] == told["judged"]["clips"] and told["packed"] == kept > 0  # type: ignore[index]
    assert (folder / "report.html").is_file() and list((folder / "dataset").glob("*.tar"))


@pytest.mark.slow
def test_each_stage_alone_finds_its_work_done_and_names_the_next(
    run: Run, sources: Path, curated: tuple[Path, dict[str, object]]
) -> None:
    folder, _ = curated
    code, stdout, stderr = run("split", sources, folder)
    assert code == 0, stderr
    assert "split       3" in stdout and "failed      1" in stdout and "all inputs  4" in stdout
    assert "1 other files were left aside" in stdout
    assert stderr.splitlines()[-1] == f"next: svd curate annotate {folder}"
    code, stdout, stderr = run("annotate", folder)
    assert code == 0 and "motion" in stdout and stderr.splitlines()[-1].endswith(f"filter {folder} --explain")
    code, stdout, stderr = run("filter", folder, "--explain")
    assert code == 0 and "all clips" in stdout and "= kept" in stdout and "motion: lowest 25%" in stdout
    assert stderr.splitlines()[-1] == f"next: svd curate filter {folder}"
    assert run("filter", folder)[0] == 0
    code, stdout, stderr = run("pack", folder)
    assert code == 0 and " 0 clips added" in stdout and "next: svd train" in stderr
    code, stdout, _ = run("report", folder)
    assert code == 0 and Path(stdout.strip()).is_file()
    clip = next((folder / "clips").rglob("*.mp4"))
    code, stdout, stderr = run("explain", clip, "-o", folder / "one.png")
    assert code == 0 and (folder / "one.png").stat().st_size > 1000, stderr
    code, stdout, _ = run("annotate", folder, "--only", "motion", "--clip", clip.stem, "--json")
    assert code == 0 and json.loads(stdout)["scores"]["motion"]["failed"] == 0


@pytest.mark.slow
def test_removing_a_source_takes_its_clips_out(run: Run, sources: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    assert run("run", sources, folder, *CHANGES)[0] == 0
    code, stdout, _ = run("remove", folder, sources / "0.mp4", "--json")
    gone = json.loads(stdout)
    assert code == 0 and gone["sources"] == [str(sources / "0.mp4")] and gone["clips"] >= 1
    before = sorted(path.name for path in (folder / "clips").rglob("*.mp4"))
    told = json.loads(run("split", sources, folder, "--json")[1])
    assert told["new"] == 0 and told["inputs"]["removed"] == 1 and told["inputs"]["split"] == 2
    assert sorted(path.name for path in (folder / "clips").rglob("*.mp4")) == before


@pytest.mark.slow
def test_the_plan_makes_nothing_and_scales_to_the_papers_dataset(
    run: Run, sources: Path, tmp_path: Path
) -> None:
    changes = [*CHANGES, "--workers", "1", "--plan-clips", "577e6"]
    code, stdout, _ = run("run", sources, tmp_path / "out", "--json", *changes)
    told = json.loads(stdout)
    assert code == 0 and not (tmp_path / "out").exists()
    assert told["sampled"] == 4 and told["failed"] == 1 and told["clips"] == pytest.approx(577e6)
    names = [stage["name"] for stage in told["stages"]]
    assert names == ["split", "motion", "camera"] and told["bottleneck"] in names
    spent = sum(stage["per_second"] for stage in told["stages"]) * told["seconds"] / 3600
    assert told["cpu_hours"] == pytest.approx(spent) and told["hours"] == pytest.approx(spent)
    assert told["workers_for_30_days"] == pytest.approx(spent / 720, abs=1)
    assert told["disk"]["clips"] > 577e6 * 1000


def test_a_score_that_was_not_computed_stops_the_filter_with_a_sentence(
    run: Run, curated: tuple[Path, dict[str, object]]
) -> None:
    code, stdout, stderr = run(
        "filter", curated[0], "--refreeze", "--set", "filter.aesthetic.drop=lowest 25%"
    )
    assert (code, stdout) == (4, "") and "aesthetic" in stderr and "not computed" in stderr


def test_a_run_that_the_filter_stops_reports_what_was_done_before(run: Run, tmp_path: Path) -> None:
    write_source(tmp_path / "in.mp4", 0)
    changes = [*CHANGES, "--set", "filter.aesthetic.drop=lowest 25%"]
    code, _, stderr = run("run", tmp_path / "in.mp4", tmp_path / "out", *changes)
    assert (
        code == 3 and "aesthetic (annotate.run leaves it out)" in stderr and not (tmp_path / "out").exists()
    )
    (tmp_path / "out").mkdir()  # what is in there may hold the score
    code, stdout, stderr = run("run", tmp_path / "in.mp4", tmp_path / "out", *changes)
    assert (code, stdout) == (
        4,
        "",
    ) and f"report of what was done before: {tmp_path}/out/report.html" in stderr
    assert "motion" in (tmp_path / "out/report.html").read_text()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("split", "{in}/none", "{out}"), 2, "There is nothing at"),
        (("split", "{in}", "{out}", "--set", "split.cliping=exact"), 3, "Did you mean split.clipping?"),
        (("split", "{in}", "{out}", "--recipe", "curat"), 3, "Did you mean curate?"),
        (("split", "{in}", "{out}", "--workers", "0"), 2, "--workers"),
        (("annotate", "{in}"), 2, "is no curation folder"),
        (("filter", "{in}"), 2, "is no curation folder"),
        (("pack", "{in}"), 2, "svd curate split"),
        (("explain", "no-such-clip", "--folder", "{in}"), 2, "is no curation folder"),
        (("remove", "{in}", "x"), 2, "is no curation folder"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(
    run: Run, sources: Path, tmp_path: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    given = [word.replace("{in}", str(sources)).replace("{out}", str(tmp_path / "out")) for word in words]
    got, stdout, stderr = run(*given)
    assert (got, stdout) == (code, "") and said in stderr


def test_a_folder_without_any_video_is_said_at_the_end(run: Run, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/notes.txt").write_text("words")
    code, stdout, stderr = run("run", tmp_path / "in", tmp_path / "out", *CHANGES)
    assert (code, stdout) == (4, "") and "No clip came out" in stderr
