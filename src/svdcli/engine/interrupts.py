"""Ctrl-C and SIGTERM while training: heard at once, obeyed between two steps, so none is saved in part."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupts:
    """Within the block both signals raise KeyboardInterrupt or, while `defer` is set, only set `wished`.

    A second signal is obeyed at once in either case. Outside of the main thread signals stay as they are.
    """

    def __init__(self) -> None:
        self.defer = False
        self.wished = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if not self.defer or self.wished:
            raise KeyboardInterrupt
        self.wished = True
