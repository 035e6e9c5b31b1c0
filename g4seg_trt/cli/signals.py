"""Ctrl-C and the request to end (SIGTERM) as a question that a loop asks between two images."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_MESSAGE = b"\nending after what is in flight; once more ends at once\n"


@contextmanager
def asked_to_end() -> Iterator[Callable[[], bool]]:
    """A function that says whether the process was asked to end. Asked twice, KeyboardInterrupt is raised.

    Signals that the process ignores stay ignored. Outside the main thread nothing changes.
    """
    asked: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        os.write(2, _MESSAGE)  # print may be in the middle of a line of its own

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        before = {number: old for number, old in before.items() if old is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: bool(asked)
    finally:
        for number, old in before.items():
            signal.signal(number, old)
