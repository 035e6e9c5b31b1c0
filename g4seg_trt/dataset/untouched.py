"""Leaves the masks as they are, in the place of a Refiner: what post-processing alone makes of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable
from contextlib import closing
from types import TracebackType
from typing import TypeVar

import numpy as np

from g4seg_trt.backends import fingerprint_of
from g4seg_trt.config import RefineConfig
from g4seg_trt.errors import ConfigError, G4SegError
from g4seg_trt.inputs import check_image, check_masks
from g4seg_trt.refinement import Refinement
from g4seg_trt.stream import Loaded, prefetched
from g4seg_trt.update import BACKGROUND, BackgroundRule

Key = TypeVar("Key")


class Untouched:
    """Has what a run over a data set asks of a Refiner, and needs no engine."""

    def __enter__(self) -> Untouched:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def fingerprint(self) -> dict[str, str]:
        """As Refiner.fingerprint: no engine."""
        return fingerprint_of(None, None)

    def refine_many(
        self,
        items: Iterable[tuple[Key, Callable[[], Loaded]]],
        *,
        config: RefineConfig | None = None,  # noqa: ARG002 - there is nothing to set
        keep: Collection[str] = (),  # noqa: ARG002
        prefetch: int = 2,
    ) -> Generator[tuple[Key, Refinement | G4SegError], None, None]:
        """As Refiner.refine_many, with the masks that came in."""
        with closing(prefetched(items, untouched, prefetch)) as results:
            yield from results


def untouched(loaded: Loaded) -> Refinement:
    """The masks of one image as a refinement that changed nothing.

    Raises:
        ImageError, MaskError: as Refiner.refine.
        ConfigError: if the background rule is channel and there is no mask of the background.
    """
    image = check_image(np.asarray(loaded[0]))
    masks = check_masks(loaded[1], (image.shape[0], image.shape[1]))
    rule = loaded[2] if len(loaded) == 3 else BackgroundRule()
    if rule.kind == "channel" and masks.pop(BACKGROUND, None) is None:
        raise ConfigError(f'background rule channel needs a mask of the class "{BACKGROUND}"')
    return Refinement(masks, dict.fromkeys(masks, 0.0), [], {}, {}, {}, {}, {})
