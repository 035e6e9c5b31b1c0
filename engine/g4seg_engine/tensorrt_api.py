"""The door to TensorRT and Polygraphy: import them, and keep what they say so that an error can quote it."""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from g4seg_engine.errors import EngineError, MissingExtraError

if TYPE_CHECKING:
    import tensorrt as trt

logger = logging.getLogger(__name__)

_KEPT = 20
_MEMORY = re.compile(
    r"out of memory|outofmemory|cudaErrorMemoryAllocation|insufficient memory|memory allocation fail|failed allocation",
    re.IGNORECASE,
)


class Messages:
    """TensorRT's last errors. Its threads may all write at once."""

    def __init__(self) -> None:
        self._texts: deque[str] = deque(maxlen=_KEPT)

    def add(self, text: str) -> None:
        """Keep a message, as one line, unless it repeats the last one."""
        line = " ".join(text.split())
        if line and (not self._texts or self._texts[-1] != line):
            self._texts.append(line)

    def clear(self) -> None:
        """Forget what was said, before something that may fail."""
        self._texts.clear()

    def last(self, count: int = 1) -> str:
        """The last `count` messages in one line, oldest first."""
        return "; ".join(list(self._texts)[-count:]) or "it gave no reason"

    def out_of_memory(self) -> bool:
        """Whether a message speaks of memory that is not there."""
        return any(_MEMORY.search(text) for text in self._texts)


def import_tensorrt() -> Any:
    """The module `tensorrt`.

    Raises:
        MissingExtraError: it is not installed.
        EngineError: it is installed and cannot be loaded.
    """
    try:
        import tensorrt
    except ModuleNotFoundError as error:
        if error.name not in ("tensorrt", "tensorrt_bindings"):
            raise EngineError(_broken(error)) from error
        raise MissingExtraError.for_package("tensorrt", "tensorrt") from error
    except (ImportError, OSError) as error:
        # The bindings are there, the libraries behind them are not, or are of another version.
        raise EngineError(_broken(error)) from error
    return tensorrt


@cache
def message_log(trt: Any) -> tuple[trt.ILogger, Messages]:
    """The one logger of this process for runtimes, and the errors that it keeps.

    One for all: TensorRT hands some messages to the first logger that it was given.
    """
    messages = Messages()

    class ErrorLog(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()

        def log(self, severity: Any, msg: str) -> None:
            # TensorRT calls this from C++ that must not see an exception.
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                messages.add(msg)
            elif severity == trt.ILogger.Severity.WARNING:
                logger.debug("TensorRT: %s", msg)

    return ErrorLog(), messages


def new_runtime(trt: Any, log: trt.ILogger, messages: Messages) -> trt.Runtime:
    """A TensorRT runtime that writes to `log`.

    Raises:
        EngineError: TensorRT cannot start on this machine; its own reason is in `messages`.
    """
    messages.clear()
    try:
        return trt.Runtime(log)
    except TypeError as error:  # what the bindings make of a null pointer
        raise EngineError(cannot_start(trt, messages)) from error


def cannot_start(trt: Any, messages: Messages) -> str:
    """Why neither builder nor runtime could be made."""
    reason = messages.last()
    if re.search(r"driver version is insufficient|error: 35\b", reason):
        return f"the NVIDIA driver is too old for TensorRT {trt.__version__} ({reason}); update the driver"
    return f"TensorRT {trt.__version__} cannot start: {reason}"


def require_polygraphy() -> None:
    """Check that Polygraphy is there.

    Raises:
        MissingExtraError: it is not.
    """
    try:
        import polygraphy  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "polygraphy":
            raise
        raise MissingExtraError.for_package("polygraphy", "tensorrt") from error


@contextmanager
def polygraphy_errors() -> Iterator[Messages]:
    """Collects the errors that Polygraphy and its TensorRT logger report, in place of printing them on stdout."""
    from polygraphy.logger import G_LOGGER

    messages = Messages()

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.add(record.getMessage())

    sink = logging.getLogger("Polygraphy")
    handler = Collect()
    before = G_LOGGER.use_python_logging_system, G_LOGGER.colors, G_LOGGER.letter, sink.propagate
    G_LOGGER.use_python_logging_system, G_LOGGER.colors, G_LOGGER.letter, sink.propagate = True, False, False, False
    sink.addHandler(handler)
    try:
        with G_LOGGER.verbosity(G_LOGGER.ERROR):
            yield messages
    finally:
        sink.removeHandler(handler)
        G_LOGGER.use_python_logging_system, G_LOGGER.colors, G_LOGGER.letter, sink.propagate = before


def _broken(error: ImportError | OSError) -> str:
    reason = " ".join(str(error).split())
    return f"TensorRT is installed but cannot be loaded ({reason}): pip install --force-reinstall 'g4seg-trt[tensorrt]'"
