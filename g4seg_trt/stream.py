"""Many images in one go: loading runs ahead in a thread, pairs of several images share batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeAlias, TypeVar

from g4seg_trt.arrays import Array
from g4seg_trt.chain import Chain, ClassMask
from g4seg_trt.errors import G4SegError
from g4seg_trt.preparation import Preparation, PreparedImage
from g4seg_trt.refinement import ClassResult, Refinement, assemble
from g4seg_trt.run import Run
from g4seg_trt.timing import Timings
from g4seg_trt.update import BackgroundRule

Loaded: TypeAlias = tuple[Array, Mapping[str, Array]] | tuple[Array, Mapping[str, Array], BackgroundRule]
"""An image and its masks, with the background rule if it is this image's own."""

Key = TypeVar("Key")
Raw = TypeVar("Raw")
Prepared = TypeVar("Prepared")


def prefetched(
    items: Iterable[tuple[Key, Callable[[], Raw]]],
    prepare: Callable[[Raw], Prepared],
    ahead: int,
) -> Generator[tuple[Key, Prepared | G4SegError], None, None]:
    """Load and prepare up to `ahead` items in a thread while the caller works.

    Yields:
        Each key in order with what was prepared, or with the user's error that stopped it. Any other
        exception is raised when its item's turn comes.
    """

    def attempt(load: Callable[[], Raw]) -> Prepared | G4SegError:
        try:
            return prepare(load())
        except G4SegError as error:
            return error.with_traceback(None)  # its frames hold the image and masks

    waiting: deque[tuple[Key, Future[Prepared | G4SegError]]] = deque()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="g4seg-load") as pool:
        try:
            for key, load in items:
                waiting.append((key, pool.submit(attempt, load)))
                if len(waiting) > ahead:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


@dataclass
class _Entry(Generic[Key]):
    """One image on its way through; without a preparation it failed."""

    key: Key
    error: G4SegError | None = None
    preparation: Preparation | None = None
    timings: Timings = field(default_factory=Timings)
    pending: int = 0
    results: dict[str, ClassResult] = field(default_factory=dict)


class Stream(Generic[Key]):
    """Refines prepared images in order, in full batches as far as that holds few images back.

    Beyond 2 * batch_size waiting images an incomplete batch runs, which changes no result.

    Args:
        chain: encodes the images.
        run: refines their pairs.
    """

    def __init__(self, chain: Chain, run: Run) -> None:
        self._chain = chain
        self._run = run
        self._line: deque[_Entry[Key]] = deque()
        self._queue: deque[tuple[_Entry[Key], str, ClassMask]] = deque()

    def refine(
        self, prepared: Iterable[tuple[Key, tuple[PreparedImage, Preparation] | G4SegError]]
    ) -> Iterator[tuple[Key, Refinement | G4SegError]]:
        """Each key in order with its refinement, or with the error it came with."""
        size = self._run.batch_size
        for key, outcome in prepared:
            self._enter(key, outcome)
            while len(self._queue) >= size or (self._queue and len(self._line) > 2 * size):
                self._refine_batch()
            yield from self._done()
        while self._queue:
            self._refine_batch()
        yield from self._done()

    def _enter(self, key: Key, outcome: tuple[PreparedImage, Preparation] | G4SegError) -> None:
        if isinstance(outcome, G4SegError):
            self._line.append(_Entry(key, error=outcome))
            return
        image, preparation = outcome
        entry = _Entry(key, preparation=preparation, timings=image.timings)
        self._line.append(entry)
        if self._run.needed(preparation):
            encoded = self._chain.encode_image(image.pixels)
            entry.timings.add(encoded.timings)
            pairs = self._run.pairs(encoded, preparation)
            entry.pending = len(pairs)
            self._queue.extend((entry, name, pair) for name, pair in pairs.items())

    def _refine_batch(self) -> None:
        batch = [self._queue.popleft() for _ in range(min(self._run.batch_size, len(self._queue)))]
        results = self._run.refine([pair for _, _, pair in batch])
        for (entry, name, _), result in zip(batch, results, strict=True):
            entry.results[name] = result
            entry.pending -= 1

    def _done(self) -> Iterator[tuple[Key, Refinement | G4SegError]]:
        while self._line and not self._line[0].pending:
            entry = self._line.popleft()
            if entry.error is not None:
                yield entry.key, entry.error
            elif entry.preparation is not None:
                yield entry.key, assemble(entry.preparation, entry.results, self._run.config, entry.timings)
