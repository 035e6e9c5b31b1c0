"""Networks that open in the background, or one at a time."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError
from typing import Any

import pytest

from g4seg_engine.errors import EngineError
from g4seg_engine.networks import Networks, OneAtATime


class Opened:
    """A runner that knows whether it is closed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


def same(one: object, other: object) -> bool:
    return one is other


class Opener:
    """Opens networks and remembers them."""

    def __init__(self) -> None:
        self.opened: list[Opened] = []
        self.asked = threading.Event()
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, name: str) -> Any:
        self.asked.set()
        assert self.gate.wait(10)
        if name == "broken":
            raise EngineError("broken cannot be opened")
        self.opened.append(Opened(name))
        return self.opened[-1]


def test_they_open_in_order_while_the_caller_goes_on() -> None:
    opener = Opener()
    opener.gate.clear()
    networks = Networks(opener, ["b", "a", "c"])
    assert opener.opened == []
    opener.gate.set()
    assert same(networks["c"], opener.opened[2])
    assert [one.name for one in opener.opened] == ["b", "a", "c"]
    assert networks["a"] is networks["a"]
    assert len(opener.opened) == 3
    networks.close()
    assert [one.closed for one in opener.opened] == [1, 1, 1]


def test_what_cannot_be_opened_is_raised_where_it_is_needed() -> None:
    opener = Opener()
    networks = Networks(opener, ["a", "broken", "c"])
    assert same(networks["a"], opener.opened[0])
    for _ in range(2):
        with pytest.raises(EngineError, match="broken cannot be opened"):
            networks["broken"]
    assert same(networks["c"], opener.opened[-1])
    networks.close()
    assert all(one.closed == 1 for one in opener.opened)


def test_closing_does_not_open_what_is_still_waiting() -> None:
    opener = Opener()
    opener.gate.clear()
    networks = Networks(opener, ["a", "b", "c"])
    assert opener.asked.wait(10)
    waiting = [networks._opening[name] for name in ("b", "c")]
    closing = threading.Thread(target=networks.close)
    closing.start()
    # The one on its way is let through when the others are cancelled.
    for future in waiting:
        with pytest.raises(CancelledError):
            future.result(10)
    assert closing.is_alive()
    opener.gate.set()
    closing.join(10)
    assert not closing.is_alive()
    assert [(one.name, one.closed) for one in opener.opened] == [("a", 1)]
    with pytest.raises(EngineError, match="closed"):
        networks["a"]
    networks.close()


def test_one_at_a_time() -> None:
    opener = Opener()
    networks = OneAtATime(opener)
    assert opener.opened == []
    first = networks["a"]
    assert networks["a"] is first
    networks["b"]
    assert [(one.name, one.closed) for one in opener.opened] == [("a", 1), ("b", 0)]
    assert networks["a"] is not first
    networks.close()
    networks.close()
    assert [one.closed for one in opener.opened] == [1, 1, 1]
    with pytest.raises(EngineError, match="closed"):
        networks["a"]


def test_one_that_cannot_be_opened_leaves_nothing_behind() -> None:
    opener = Opener()
    networks = OneAtATime(opener)
    networks["a"]
    with pytest.raises(EngineError, match="broken"):
        networks["broken"]
    assert [one.closed for one in opener.opened] == [1]
    assert same(networks["a"], opener.opened[1])
    networks.close()
