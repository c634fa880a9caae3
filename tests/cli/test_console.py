from __future__ import annotations

import io
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from svdcli.cli.console import Console, human_size, table


def test_human_result_is_lines_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    out = Console()
    out.say("working")
    out.result({"path": "a.mp4"}, ["a.mp4", "b.mp4"])
    assert capsys.readouterr() == ("a.mp4\nb.mp4\n", "working\n")


def test_json_result_is_one_object_whatever_libraries_print(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # put back afterwards
    out = Console()
    out.use_json()
    print("a library that chats")
    out.result({"path": Path("a.mp4"), "psnr": np.float32(2.5), "ids": (5, 127), "nan": math.nan}, "a.mp4")
    stdout, stderr = capsys.readouterr()
    assert json.loads(stdout) == {"path": "a.mp4", "psnr": 2.5, "ids": [5, 127], "nan": None}
    assert stderr == "a library that chats\n"


def test_a_command_answers_once() -> None:
    out = Console()
    out.result({})
    with pytest.raises(AssertionError, match="once"):
        out.result({})


def test_quiet_keeps_data_and_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    out = Console()
    out.quiet = True
    out.say("talk")
    out.next("svd doctor")
    with out.progress("steps", total=2) as bar:
        bar.advance()
    out.warn("14 frames is not what this bundle was trained on")
    out.result({}, "a.mp4")
    assert capsys.readouterr() == ("a.mp4\n", "warning: 14 frames is not what this bundle was trained on\n")


@pytest.mark.parametrize("variable", ["RANK", "LOCAL_RANK", "SLURM_PROCID"])
def test_only_the_first_process_speaks(
    variable: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Console()
    monkeypatch.setenv(variable, "1")
    out.say("talk")
    out.warn("talk")
    out.result({}, "a.mp4")
    assert capsys.readouterr() == ("", "")
    out.error("rank 1 has no memory")
    assert capsys.readouterr().err == "error: rank 1 has no memory\n"
    monkeypatch.setenv(variable, "0")
    out.say("talk")
    assert capsys.readouterr().err == "talk\n"


def test_progress_off_a_terminal_is_plain_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 4.0, 12.0, 13.0, 16.0])
    monkeypatch.setattr("svdcli.cli.console.time.monotonic", lambda: next(clock))
    with Console().progress("steps", total=4) as bar:
        bar.advance()  # 4 s: too early for a line
        bar.advance(note="decoding next")  # 12 s
        bar.advance(2)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["steps: 2/4, about 12 s left decoding next", "steps: 4/4, 16.0 s decoding next"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Console().progress("steps", total=4) as bar:
        bar.advance(4, note="done")
    written = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "4/4" in written and "steps" in written and "done" in written


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_no_color_is_honoured(no_color: str, coloured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", no_color)
    assert ("\x1b[" in Console().style("error:", "error", Terminal())) is coloured


def test_table_aligns_its_columns() -> None:
    assert table([("svd", "1 GiB"), ("nano", "9 MiB")], ("name", "size")) == [
        "name  size",
        "svd   1 GiB",
        "nano  9 MiB",
    ]
    assert table([]) == []


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (20 * 2**20, "20 MiB"), (3 * 2**40, "3.0 TiB")],
)
def test_human_size(num_bytes: int, text: str) -> None:
    assert human_size(num_bytes) == text
