"""Who tells on the console how a curation goes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from svdcli.cli.console import Progress, out

if TYPE_CHECKING:
    from svdcli.curate.run.pipeline import Watch


def watch() -> Watch:
    """A progress bar a stage, and warnings."""
    from svdcli.curate.run.pipeline import Watch

    class Told(Watch):
        @contextmanager
        def stage(self, label: str, total: int) -> Iterator[Progress]:
            with out.progress(label, total) as progress:
                yield progress

        def warn(self, sentence: str) -> None:
            out.warn(sentence)

    return Told()
