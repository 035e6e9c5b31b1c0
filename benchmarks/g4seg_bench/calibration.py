"""Whether the machine is equally fast before, between and after the rounds: a fixed piece of work, timed each time."""

from __future__ import annotations

from statistics import median
from time import perf_counter, sleep

import numpy as np

SIDE = 768
SECONDS = 0.25
SETTLE = 0.05
"""For the threads of the product to come to rest before anything else is measured."""


class Calibration:
    """Times a matrix product of 768 x 768 float32 numbers on all cores.

    Attributes:
        seconds: of each time that `measure` was called: the median of its products.
    """

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self._left, self._right = (rng.random((SIDE, SIDE), dtype=np.float32) for _ in range(2))
        self._result = np.empty_like(self._left)
        self.seconds: list[float] = []
        self._product()  # the first one starts the threads

    def measure(self) -> None:
        """Time the products for a quarter of a second."""
        end = perf_counter() + SECONDS
        taken = [self._product()]
        while perf_counter() < end:
            taken.append(self._product())
        self.seconds.append(median(taken))
        sleep(SETTLE)

    @property
    def drift(self) -> float:
        """Slowest to fastest, as a share of the median; 0 before two times."""
        if len(self.seconds) < 2:
            return 0.0
        return (max(self.seconds) - min(self.seconds)) / median(self.seconds)

    def _product(self) -> float:
        start = perf_counter()
        np.matmul(self._left, self._right, out=self._result)
        return perf_counter() - start
