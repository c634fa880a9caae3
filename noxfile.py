"""Checks of the project: `nox` runs lint, types and tests; `nox -s bench` and `nox -s gpu` on request."""

from __future__ import annotations

from pathlib import Path

import nox

nox.options.sessions = ["lint", "types", "tests"]
nox.options.reuse_existing_virtualenvs = True

PINS = ("-c", "constraints.txt")  # the set that the tests are known to pass with
BENCHMARKS = Path("tests/benchmarks")


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff's rules and its format; `nox -s lint -- --fix` mends what it can."""
    session.install(*PINS, "ruff")
    fix = "--fix" in session.posargs
    session.run("ruff", "check", *(["--fix"] if fix else []), ".")
    session.run("ruff", "format", *([] if fix else ["--check"]), ".")


@nox.session
def types(session: nox.Session) -> None:
    """Mypy over the sources, with the real types of every dependency."""
    session.install(*PINS, ".", "mypy")
    session.run("mypy", "src", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """The whole suite against an installed wheel; arguments go to pytest (`nox -s tests -- -k doctor`)."""
    session.install(*PINS, ".[test]")
    session.run("pytest", *(session.posargs or ("-n", "2")))


@nox.session
def gpu(session: nox.Session) -> None:
    """Only the tests that need a CUDA device."""
    session.install(*PINS, ".[test]")
    session.run("pytest", "-m", "gpu", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Every script of tests/benchmarks, or those that are named (`nox -s bench -- unet_step.py`)."""
    session.install(*PINS, ".[test]")
    names = session.posargs or sorted(path.name for path in BENCHMARKS.glob("bench_*.py"))
    if not names:
        session.error(f"{BENCHMARKS} holds no benchmark")
    for name in names:
        session.run("python", str(BENCHMARKS / name))
