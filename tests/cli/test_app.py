"""`main`: every exit code, the sentences that go with it, and what `svd --help` may cost."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from svdcli import __version__, errors
from svdcli.cli import app
from svdcli.cli.app import main
from svdcli.cli.console import out

Run = Callable[..., tuple[int, str, str]]

HEAVY = {
    "torch",
    "numpy",
    "transformers",
    "av",
    "cv2",
    "PIL",
    "pydantic",
    "huggingface_hub",
    "lightning_fabric",
}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def invent(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Gives `svd` one more command, `invented`, and one more group, `group inner`."""

    def add(body: Callable[[], None]) -> None:
        module = type(sys)("svdcli.cli.invented")

        def invented(frames: int = 14) -> None:
            """An invented command."""
            body()

        def register(tree: typer.Typer) -> None:
            tree.command()(invented)
            group = typer.Typer(no_args_is_help=True)
            group.command("inner")(invented)
            group.command("other")(invented)
            tree.add_typer(group, name="group")

        module.register = register  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "svdcli.cli.invented", module)
        monkeypatch.setattr(app, "COMMANDS", (*app.COMMANDS, "invented"))

    return add


def raising(error: BaseException) -> Callable[[], None]:
    def body() -> None:
        raise error

    return body


# ---- help, version, completion -------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_lists_every_command(run: Run, flag: str) -> None:
    code, stdout, stderr = run(flag)
    assert (code, stderr) == (0, "")
    commands = re.findall(r"^  (\w+)  ", stdout[stdout.index("Commands:") :], re.MULTILINE)
    assert set(app.COMMANDS) | {"decode"} == set(commands)  # `decode` comes with `sample`


@pytest.mark.parametrize(
    "command", [*((name,) for name in app.COMMANDS), ("group",), ("group", "inner")], ids=" ".join
)
def test_help_of_each_command_in_both_spellings(command: tuple[str, ...], run: Run, invent) -> None:
    invent(lambda: None)
    short, long = run(*command, "-h"), run(*command, "--help")
    assert short == long
    code, stdout, _ = short
    assert code == 0 and f"svd {' '.join(command)}" in stdout
    assert "--json" in stdout and "--quiet" in stdout and "--debug" in stdout


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"svd {__version__}\n", "")


def test_nothing_asked_shows_the_help_and_fails(run: Run, invent) -> None:
    invent(lambda: None)
    for arguments in ((), ("group",)):
        code, stdout, stderr = run(*arguments)
        assert (code, stdout) == (2, "")
        assert stderr.startswith("Usage: svd") and "Commands:" in stderr


def test_completion_script_and_completion(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    code, stdout, _ = run("--show-completion", "bash")
    assert code == 0 and "complete -o default -F _svd_completion svd" in stdout
    monkeypatch.setenv("_SVD_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "svd doc")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert run()[:2] == (0, "doctor\n")


def test_completion_is_installed_in_the_home_folder(tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "svdcli", "--install-completion", "bash"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "svd" in (tmp_path / ".bashrc").read_text()


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; from svdcli.cli.app import main; code = main(['--help']); "
        "print(sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = set(re.findall(r"'(\w+)'", done.stderr))
    assert "typer" in loaded
    assert not loaded & (HEAVY | {"rich"})


def test_help_answers_at_once() -> None:
    """0.3 s on an idle machine. Processor time is held: on a busy machine wall time measures the others."""
    times = []
    for _ in range(5):
        before = os.times()
        subprocess.run([sys.executable, "-m", "svdcli", "--help"], check=True, capture_output=True)
        after = os.times()
        times.append(
            after.children_user + after.children_system - before.children_user - before.children_system
        )
    assert min(times) < 0.5


# ---- the result ----------------------------------------------------------------------------------------


def test_json_answers_with_one_object(run: Run, invent) -> None:
    def body() -> None:
        print("a library chats")
        out.say("talk")
        out.result({"made": 1}, "made one")

    invent(body)
    code, stdout, stderr = run("invented", "--json")
    assert (code, json.loads(stdout)) == (0, {"made": 1})
    assert stderr == "a library chats\ntalk\n"
    assert run("--json", "invented")[1] == stdout  # the option may stand before the verb
    assert run("invented") == (0, "a library chats\nmade one\n", "talk\n")  # and is forgotten afterwards
    assert run("group", "inner", "-q") == (0, "a library chats\nmade one\n", "")


def test_stdout_is_given_back_after_json(run: Run, invent) -> None:
    invent(lambda: None)
    before = sys.stdout
    run("invented", "--json")
    assert sys.stdout is before


# ---- errors --------------------------------------------------------------------------------------------

KNOWN = [
    (errors.UsageError, 2),
    (errors.RecipeError, 3),
    (errors.InputError, 4),
    (errors.MachineError, 5),
]


@pytest.mark.parametrize("flags", [(), ("--json",)], ids=["human", "json"])
@pytest.mark.parametrize(("kind", "expected"), KNOWN)
def test_known_errors_are_two_lines(kind, expected: int, flags: tuple[str, ...], run: Run, invent) -> None:
    invent(raising(kind("the picture is cut\nshort", "save it again")))
    assert run("invented", *flags) == (expected, "", "error: the picture is cut short\nhint: save it again\n")


def test_known_error_without_a_hint_is_one_line(run: Run, invent) -> None:
    invent(raising(errors.InputError("no such picture: a.png")))
    assert run("invented")[2] == "error: no such picture: a.png\n"


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (("doctr",), "No such command 'doctr'. Did you mean 'doctor'?", "see svd --help"),
        (("--frames",), "No such option: --frames", "see svd --help"),
        (("doctor", "--frames"), "No such option: --frames", "see svd doctor --help"),
        (("invented", "--frames", "many"), "Invalid value for '--frames'", "see svd invented --help"),
        (("invented", "more"), "Got unexpected extra argument", "see svd invented --help"),
    ],
)
def test_usage_errors_are_one_line_and_where_help_is(
    arguments: tuple[str, ...], message: str, hint: str, run: Run, invent
) -> None:
    invent(lambda: None)
    for flags in ((), ("--json",)):
        code, stdout, stderr = run(*flags, *arguments)
        assert (code, stdout) == (2, "")
        lines = stderr.splitlines()
        assert len(lines) == 2
        assert lines[0].startswith(f"error: {message}")
        assert lines[1] == f"hint: {hint}"


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), typer.Abort()], ids=["ctrl-c", "ctrl-c at a question"]
)
def test_interrupt(error: BaseException, run: Run, invent) -> None:
    invent(raising(error))
    assert run("invented") == (130, "", "error: interrupted\n")


class OutOfMemoryError(RuntimeError):
    """Named as torch names its own."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"
        ),
        RuntimeError("MPS backend out of memory"),
    ],
    ids=["python", "cuda", "cpu", "mps"],
)
def test_spent_memory_is_a_machine_error(error: Exception, run: Run, invent) -> None:
    invent(raising(error))
    code, stdout, stderr = run("invented")
    assert (code, stdout) == (5, "")
    assert stderr.startswith("error: the memory of this machine ran out\nhint: ask for less")


def test_torch_names_its_memory_error_as_we_believe() -> None:
    import torch

    assert torch.cuda.OutOfMemoryError.__name__ == OutOfMemoryError.__name__


@pytest.mark.parametrize(
    ("error", "where"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a.mp4"), ": a.mp4 could not be written"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), ""),
    ],
    ids=["python", "a library of rust"],
)
def test_full_disk_is_a_machine_error(error: Exception, where: str, run: Run, invent) -> None:
    invent(raising(error))
    code, _, stderr = run("invented")
    assert code == 5
    assert stderr.startswith(f"error: the disk is full{where}\nhint: free some space")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full to fill")
def test_full_disk_behind_stdout() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "svdcli", "--version"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 5
    assert done.stderr.startswith("error: the disk is full")


def test_a_bug_leaves_a_log_with_the_traceback(
    run: Run, invent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    invent(raising(ZeroDivisionError("three over nothing")))
    code, stdout, stderr = run("invented", "--frames", "3", "--json")
    assert (code, stdout) == (1, "")
    first, second = stderr.splitlines()
    assert first == "error: this is a bug in svd: ZeroDivisionError: three over nothing"
    (log,) = tmp_path.iterdir()
    assert str(log) in second
    text = log.read_text()
    assert "$ svd invented --frames 3 --json" in text and "Traceback" in text and __version__ in text


def test_a_bug_without_a_temporary_folder_is_still_said(
    run: Run, invent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/nowhere/at/all")
    invent(raising(ZeroDivisionError()))
    code, _, stderr = run("invented")
    assert code == 1 and "--debug" in stderr.splitlines()[-1]


@pytest.mark.parametrize(("error", "expected"), [(ZeroDivisionError(), 1), (errors.InputError("bad"), 4)])
def test_debug_shows_the_traceback(error: Exception, expected: int, run: Run, invent) -> None:
    invent(raising(error))
    code, stdout, stderr = run("invented", "--debug")
    assert (code, stdout) == (expected, "")
    assert "Traceback (most recent call last)" in stderr


def test_a_reader_that_leaves_is_not_an_error() -> None:
    script = "import sys; from svdcli.cli.app import main; sys.exit(main(['--help']))"
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-c", script], stdout=writer, stderr=subprocess.PIPE, text=True
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")
