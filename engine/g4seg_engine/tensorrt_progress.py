"""A progress bar over one TensorRT build, which Ctrl-C ends cleanly."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    import tensorrt as trt


class BuildProgress:
    """Steps and phases of one build. TensorRT's threads may all report at once.

    Attributes:
        interrupted: set to end the build at its next step.
    """

    def __init__(self, title: str, show: bool) -> None:
        self.interrupted = False
        self._bar: tqdm[Any] = tqdm(desc=title, total=0, unit="step", disable=not show)
        self._outer: set[str] = set()
        self._lock = threading.Lock()

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """A phase begins: an outer one adds its steps to the bar, an inner one shows its name."""
        with self._lock:
            if parent is None:
                self._outer.add(phase)
                self._bar.total = (self._bar.total or 0) + steps
            self._bar.set_postfix_str(phase)

    def step(self, phase: str) -> bool:
        """A step is done. Returns whether the build shall go on."""
        with self._lock:
            if phase in self._outer:
                self._bar.update()
        return not self.interrupted

    def finish(self, phase: str) -> None:
        """A phase has ended."""
        with self._lock:
            self._outer.discard(phase)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()


@contextmanager
def build_progress(trt: Any, title: str, *, show: bool) -> Iterator[trt.IProgressMonitor]:
    """A progress monitor for one build.

    Ctrl-C is noted and ends the build at its next step: an exception in a function that C++ calls would end the
    process. A second Ctrl-C acts as ever.

    Args:
        trt: the module.
        title: what the bar shows.
        show: whether there is a bar.

    Raises:
        KeyboardInterrupt: when the block is left after Ctrl-C.
    """
    progress = BuildProgress(title, show)

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:  # noqa: ARG002
            return progress.step(phase_name)

        def phase_finish(self, phase_name: str) -> None:
            progress.finish(phase_name)

    try:
        with _deferred_interrupt(progress):
            yield Monitor()
    finally:
        progress.close()
        if progress.interrupted:
            raise KeyboardInterrupt from None


@contextmanager
def _deferred_interrupt(progress: BuildProgress) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers, and only it gets the signal
        return

    def note(*_: object) -> None:
        progress.interrupted = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note) or signal.SIG_DFL
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
