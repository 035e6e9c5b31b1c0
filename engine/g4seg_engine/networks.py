"""The networks of an engine: opened one after another in the background, or one at a time to save memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from g4seg_engine.errors import EngineError
from g4seg_engine.runner import Runner

Open = Callable[[str], Runner]


class Networks:
    """Opens the networks while the caller does other things. One thread at a time may ask for them.

    Args:
        open_one: opens a network by its name.
        names: the networks, in the order in which they are opened.
    """

    def __init__(self, open_one: Open, names: Sequence[str]) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="g4seg-open")
        self._opening: dict[str, Future[Runner]] = {name: self._pool.submit(open_one, name) for name in names}

    def __getitem__(self, name: str) -> Runner:
        """The network; waits until it is open. It stays this object's to close.

        Raises:
            EngineError: it could not be opened, or this object is closed.
        """
        if name not in self._opening:
            raise EngineError("this engine is closed")
        return self._opening[name].result()

    def wait(self) -> None:
        """Wait until all are open; raises as asking for one does."""
        for name in self._opening:
            _ = self[name]

    def close(self) -> None:
        """Close what is open; what is not yet opened stays so."""
        opening, self._opening = self._opening, {}
        for future in opening.values():
            future.cancel()
        self._pool.shutdown()
        for future in opening.values():
            if not future.cancelled() and future.exception() is None:
                future.result().close()


class OneAtATime:
    """Keeps one network open: asking for another closes it.

    Args:
        open_one: opens a network by its name.
    """

    def __init__(self, open_one: Open) -> None:
        self._open_one: Open | None = open_one
        self._name = ""
        self._runner: Runner | None = None

    def __getitem__(self, name: str) -> Runner:
        """The network, good until the next call.

        Raises:
            EngineError: it cannot be opened, or this object is closed.
        """
        if self._open_one is None:
            raise EngineError("this engine is closed")
        if self._runner is None or self._name != name:
            self._let_go()
            self._runner, self._name = self._open_one(name), name
        return self._runner

    def wait(self) -> None:
        """Nothing to wait for: a network is opened when it is asked for."""

    def close(self) -> None:
        """Close the network that is open."""
        self._let_go()
        self._open_one = None

    def _let_go(self) -> None:
        if self._runner is not None:
            self._runner.close()
            self._runner = None
