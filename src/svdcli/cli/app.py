"""The `svd` command: gathers the commands, and alone turns errors into sentences and exit codes.

To add a command, write `cli/<name>.py` and put its name into COMMANDS. The module
- imports only typer, the standard library, `svdcli.errors` and `svdcli.cli.console` at its top: every module
  is imported for `svd --help`, which has 0.3 s; torch and all else come in inside the function that runs;
- defines `register`, which adds its command, or its group of verbs under a noun:
      def register(app: typer.Typer) -> None:
          app.command()(sample)              # or: app.add_typer(models, name="models")
- never prints, and never catches in order to print: a command returns None, answers once through
  `out.result`, talks through `out.say` and `out.progress`, and raises an SvdError. Its signature leaves out
  `--json`, `--quiet` and `--debug`: every command is given them here.

Exit codes: 0 done, 1 our bug, 2 usage, 3 recipe, 4 input, 5 machine, 6 past a threshold, 130 interrupted, 141 stdout
closed.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Annotated, Any, TextIO

import typer
import typer.core
import typer.main

from svdcli import __version__
from svdcli.cli.console import out
from svdcli.errors import MachineError, SvdError

COMMANDS = (
    "sample",
    "curate",
    "train",
    "finetune",
    "points",
    "eval",
    "recipes",
    "models",
    "doctor",
)  # in the order of `svd --help`

COMPLETION = "_SVD_COMPLETE"  # what a shell sets when it asks for completions
INTERRUPTED = 130  # 128 + SIGINT, as shells count
READER_LEFT = 141  # 128 + SIGPIPE
# Typer carries its own Click and does not export the base of its usage errors; it is never imported by name.
_USAGE_ERROR: Any = typer.BadParameter.__mro__[2]


def main(argv: Sequence[str] | None = None) -> int:
    """Run `svd` with `argv` (the process's own arguments unless given) and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    streams = sys.stdout, sys.stderr
    out.reset()
    try:
        code = build_command(arguments).main(args=arguments, prog_name="svd", standalone_mode=False)
        out.flush()
        if code == INTERRUPTED:  # Typer has turned Ctrl-C into an exit
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except BaseException as error:  # nothing leaves here but an exit code
        if _is_reader_gone(error):
            return _leave_quietly(streams[0])
        return _explain(error, arguments)
    finally:
        sys.stdout, sys.stderr = streams
        out.reset()


def build_command(arguments: Sequence[str] | None = None) -> Any:
    """The command tree; the object is Typer's own kind of Click command.

    With arguments, only what they ask for knows its options: to make out those of all commands takes longer than most
    answers.
    """
    app = typer.Typer(
        name="svd",
        no_args_is_help=True,
        rich_markup_mode=None,  # Rich would double the time that --help takes
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    )
    app.callback(epilog="Start with: svd doctor, then svd sample photo.png --frames 25 --fps 6")(_root)
    for name in COMMANDS:
        import_module(f"svdcli.cli.{name}").register(app)
    if arguments is not None and COMPLETION not in os.environ:
        _hollow(app, next((word for word in arguments if not word.startswith("-")), ""))
    command = typer.main.get_command(app)
    _add_shared_options(command)
    return command


def _hollow(app: typer.Typer, asked: str) -> None:
    """Leave of every command and group but the one that is asked for its name and its help."""
    infos = [info for info in app.registered_commands if _name(info) != asked]
    for group in app.registered_groups:
        if group.name != asked and group.typer_instance is not None:
            infos += group.typer_instance.registered_commands
    for info in infos:
        info.callback = _namesake(info.callback)


def _name(info: Any) -> str:
    return str(info.name or info.callback.__name__).replace("_", "-")


def _namesake(callback: Any) -> Any:
    """A function of that name and help that takes nothing."""

    def hollow() -> None:
        raise AssertionError("a command that was not asked for")

    hollow.__name__, hollow.__doc__ = callback.__name__, callback.__doc__
    return hollow


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"svd {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Stable Video Diffusion, from raw footage to measured videos."""


# ---- options that every command takes ------------------------------------------------------------------


def _use_json(wanted: bool) -> None:
    if wanted:
        out.use_json()


def _use_quiet(wanted: bool) -> None:
    out.quiet = out.quiet or wanted


def _use_debug(wanted: bool) -> None:
    out.debug = out.debug or wanted


def _shared_options(
    json: Annotated[
        bool,
        typer.Option(
            "--json", help="Answer with one JSON object on stdout.", callback=_use_json, expose_value=False
        ),
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet", "-q", help="No progress and no talk.", callback=_use_quiet, expose_value=False
        ),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option(
            "--debug", help="Show the traceback of an error.", callback=_use_debug, expose_value=False
        ),
    ] = False,
) -> None:
    """Only its options are used: each command of the tree gets them."""


def _add_shared_options(command: Any) -> None:
    carrier = typer.Typer(add_completion=False)
    carrier.command()(_shared_options)
    _extend(command, typer.main.get_command(carrier).params)


def _extend(command: Any, options: list[Any]) -> None:
    command.params.extend(options)
    if isinstance(command, typer.core.TyperGroup):
        for child in command.commands.values():
            _extend(child, options)


# ---- errors --------------------------------------------------------------------------------------------


def _explain(error: BaseException, arguments: list[str]) -> int:
    """Say on stderr what went wrong and what to do; returns the exit code."""
    if isinstance(error, SystemExit):  # shell completion ends this way
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        out.error("interrupted")
        return INTERRUPTED
    if isinstance(error, _USAGE_ERROR):
        return _explain_usage(error)
    known = error if isinstance(error, SvdError) else _machine_error(error)
    if known is None:
        return _report_bug(error, arguments)
    if out.debug:
        _print_traceback(error)
    out.error(known.message, known.hint)
    return known.exit_code


def _explain_usage(error: Any) -> int:
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":  # its message is the whole help
        print(error.format_message(), file=sys.stderr)
    else:
        out.error(error.format_message(), f"see {context.command_path if context else 'svd'} --help")
    return 2


def _machine_error(error: BaseException) -> MachineError | None:
    """Full disks and spent memory that no room has caught, in the words of the libraries that met them."""
    text = str(error)
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in text:
        where = getattr(error, "filename", None)
        return MachineError(
            "the disk is full" + (f": {where} could not be written" if where else ""),
            "free some space, or write elsewhere with --output or TMPDIR",
        )
    # PyTorch is not imported for this: its CUDA error is known by name, those of CPU and MPS by their words.
    spent = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if spent or "DefaultCPUAllocator" in text or "out of memory" in text:
        return MachineError(
            "the memory of this machine ran out",
            "ask for less at once: a smaller --size, fewer --frames, --vram low; svd doctor shows memory",
        )
    return None


def _is_reader_gone(error: BaseException) -> bool:
    """`svd ... | head`: Typer turns the first broken pipe into an exit."""
    return isinstance(error.__context__ if isinstance(error, SystemExit) else error, BrokenPipeError)


def _leave_quietly(stdout: TextIO) -> int:
    """No message, and none from the interpreter's last flush of `stdout` either."""
    with suppress(OSError, ValueError):  # a stdout without a file descriptor needs no care
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())
    return READER_LEFT


def _report_bug(error: BaseException, arguments: list[str]) -> int:
    what = f"this is a bug in svd: {type(error).__name__}: {error}"
    if out.debug:
        _print_traceback(error)
        out.error(what, "report it with the traceback above")
        return 1
    try:
        log = _save_log(error, arguments)
    except OSError:
        out.error(what, "run the command again with --debug to see the traceback, and report it")
    else:
        out.error(what, f"report it with the log {log}, or run again with --debug")
    return 1


def _print_traceback(error: BaseException) -> None:
    import traceback

    traceback.print_exception(error, file=sys.stderr)


def _save_log(error: BaseException, arguments: list[str]) -> str:
    import platform
    import shlex
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile(
        "w", prefix="svd-", suffix=".log", delete=False, encoding="utf-8", errors="backslashreplace"
    ) as log:
        log.write(f"svd {__version__}, Python {platform.python_version()}, {platform.platform()}\n")
        log.write(f"$ svd {shlex.join(arguments)}\n\n")
        traceback.print_exception(error, file=log)
    return log.name
