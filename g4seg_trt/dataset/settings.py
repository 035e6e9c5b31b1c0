"""How a run refines: its options, and what of it the records hold, for results to be compared by."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from g4seg_trt.class_table import ClassTable
from g4seg_trt.config import RefineConfig
from g4seg_trt.dataset.record import settings_digest
from g4seg_trt.postprocess import PostProcess, parse_post
from g4seg_trt.refinement import check_keep
from g4seg_trt.update import BackgroundRule

OWN_BACKGROUND = "the masks' own"
"""In place of a background rule where none is asked for; each image's record has the one that decided."""

_LONGEST = 40
"""Characters of a setting that is shown whole."""


@dataclass(frozen=True)
class RunOptions:
    """How to refine.

    Attributes:
        config: the settings.
        rule: the background rule asked for, None for the masks' own.
        keep: what refinements hand out beside the probabilities.
        prefetch: images to load ahead.
        stopped: asked between images; once it is true no other image is begun, and the run ends well.
        post: post-processing of the refined masks.
        compare: another, which the ground truth compares with; nothing of it is written.
    """

    config: RefineConfig
    rule: BackgroundRule | None = None
    keep: frozenset[str] = frozenset()
    prefetch: int = 2
    stopped: Callable[[], bool] = lambda: False
    post: PostProcess | None = None
    compare: PostProcess | None = None


def run_settings(
    fingerprint: Mapping[str, str],
    config: RefineConfig | None,
    rule: BackgroundRule | None,
    table: ClassTable | None,
    post: PostProcess | None = None,
) -> dict[str, Any]:
    """What results depend on beside images and masks, as the records hold it.

    Args:
        fingerprint: of the Refiner.
        config: the settings of the refinement, None where the masks are left as they are.
        rule: the background rule asked for.
        table: the data set's classes.
        post: post-processing of the refined masks.

    Raises:
        ConfigError: if weights of the post-processing cannot be read.
    """
    classes = None if table is None else settings_digest({"classes": [vars(entry) for entry in table.classes]})
    background = OWN_BACKGROUND if rule is None else str(rule)
    return {
        **fingerprint,
        "background": background,
        "classes sha256": classes,
        "post": None if post is None else post.name,
        **({} if post is None else {f"post {name}": value for name, value in post.parameters().items()}),
        **({"refinement": "none"} if config is None else config.to_mapping()),
    }


def asked_for(
    fingerprint: Mapping[str, str],
    table: ClassTable | None,
    config: RefineConfig,
    background: BackgroundRule | str | None,
    post: PostProcess | str | None,
    *,
    keep: Collection[str] = (),
    prefetch: int,
) -> tuple[dict[str, Any], RunOptions]:
    """The settings of a run and how to refine, from the arguments of Refiner.refine_dataset.

    Args:
        fingerprint: of the Refiner.
        table: the data set's classes.
        config: the settings of the refinement.
        background, post, keep, prefetch: as of Refiner.refine_dataset.

    Raises:
        ConfigError: for a setting that is not allowed.
        MissingExtraError: if the post-processing needs a package that is not installed.
    """
    rule = None if background is None else BackgroundRule.of(background)
    post = parse_post(post) if isinstance(post, str) else post
    if post is not None:
        post.check()
    options = RunOptions(config, rule, check_keep(keep), prefetch, post=post)
    return run_settings(fingerprint, config, rule, table, post), options


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """For people, what differs between the settings of two runs; "" if nothing does."""
    return "; ".join(
        f"{name} {_shown(before.get(name))}, now {_shown(now.get(name))}"
        for name in {**now, **before}
        if before.get(name) != now.get(name)
    )


def _shown(value: object) -> str:
    """A setting; hashes shortened."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[:12]}..."
