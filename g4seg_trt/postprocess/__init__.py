"""Post-processing of masks that others have published: for refined masks, or alone as a baseline.

A further process is one more module and one more line in the table below.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from g4seg_trt.errors import ConfigError
from g4seg_trt.postprocess import crf
from g4seg_trt.postprocess.cascadepsp import CascadePsp
from g4seg_trt.postprocess.crf import DenseCrf
from g4seg_trt.postprocess.pamr import Pamr
from g4seg_trt.postprocess.process import PostChain, PostProcess

__all__ = ["PROCESSES", "CascadePsp", "DenseCrf", "Pamr", "PostChain", "PostProcess", "parse_post"]

PROCESSES: Mapping[str, Callable[[], PostProcess]] = {
    "crf": DenseCrf,
    **{f"crf:{preset}": partial(DenseCrf, preset) for preset in crf.PRESETS},
    "cascadepsp": CascadePsp,
    "cascadepsp:fast": partial(CascadePsp, fast=True),
    "pamr": Pamr,
}
"""What `parse_post` knows; "crf" is the CRF's first preset."""


def parse_post(text: str) -> PostProcess:
    """The process of a name, or those of several names joined by commas, in their order.

    Args:
        text: such as "crf:irn" or "pamr,cascadepsp".

    Raises:
        ConfigError: for a name that is not in PROCESSES, or if weights are not there.
        MissingExtraError: a package that it needs is not installed.
    """
    steps = []
    for name in text.split(","):
        make = PROCESSES.get(name.strip())
        if make is None:
            raise ConfigError(
                f"post-processing {name.strip()!r}, allowed: {', '.join(PROCESSES)}; several joined by commas"
            )
        steps.append(make())
    post = steps[0] if len(steps) == 1 else PostChain(steps)
    post.check()
    return post
