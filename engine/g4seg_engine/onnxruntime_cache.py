"""Keeps what ONNX Runtime makes of a large graph, so that the next start has nothing to optimise and nothing to pack.

An entry holds the optimised graph and one file with its large weights, as the graph has them and as the kernels pack
them. A session on it maps that file and reads the packed weights in place: it is open at once, and processes share
the memory. For a UNet of 867 M parameters in float32, the private memory of an open session falls from 3.5 to 0.1 GB,
and the entry takes 4.8 GB. What a graph computes is the same to the last bit.

The session that writes an entry is closed before the entry is opened: there are never two sets of weights in memory,
and the first start's peak while it opens is that of a start without a cache (3.6 GB for that UNet).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from g4seg_engine.cache import Keep, say_unusable
from g4seg_engine.errors import EngineError

GRAPH_FILE = "model.onnx"
"""The optimised graph in an entry."""

WEIGHTS_FILE = "weights.bin"
"""Its weights, beside it."""

_SPACE = 2.0
"""An entry takes at most so many times the bytes of its network: weights as they were, and packed."""

_SMALLEST_WEIGHT = 2**20 + 1
"""Bytes from which on a weight is kept in the file of weights; smaller ones stay in the graph.

onnxruntime begins a page of the file for weights of more than 1 MiB, and for nothing else. Its kernels read packed
weights with instructions that need addresses in multiples of up to 64 bytes: behind a smaller weight of an odd size,
they end the process.
"""

OpenGraph = Callable[[Path, Callable[[Any], None]], Any]
"""A session on a graph, its options changed by a function; raises EngineError."""


def open_cached(
    runtime: ModuleType, path: Path, open_graph: OpenGraph, keep: Keep, key: Mapping[str, Any]
) -> Any | None:
    """A session on the entry of a graph, which is made if there is none.

    Args:
        runtime: onnxruntime.
        path: the graph.
        open_graph: opens a graph with all options but those of an entry.
        keep: makes or finds the entry of a key (see `cache.cached`).
        key: what the entry depends on, but for onnxruntime's version.

    Returns:
        The session, or None where there is no entry to open: open the graph itself, which also tells what is wrong
        with it.
    """

    def as_it_is(options: Any) -> None:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL

    def make(folder: Path) -> None:
        try:
            open_graph(path, partial(_save_to, folder))
            # What cannot be opened is not kept.
            open_graph(folder / GRAPH_FILE, as_it_is)
        except EngineError as error:
            # Files are written last: the graph itself is good.
            if any(folder.iterdir()):
                raise OSError(errno.EIO, str(error)) from error
            raise

    whole = {
        **key,
        "version": runtime.__version__,
        "build": runtime.get_build_info(),
        "level": "all",
        "smallest weight": _SMALLEST_WEIGHT,
    }
    try:
        entry = keep(whole, _SPACE, make)
    except EngineError:
        return None
    if entry is None:
        return None
    try:
        return open_graph(entry / GRAPH_FILE, as_it_is)
    except EngineError as error:
        say_unusable(entry, error)
        return None


def _save_to(folder: Path, options: Any) -> None:
    options.optimized_model_filepath = str(folder / GRAPH_FILE)
    for name, value in {
        "session.optimized_model_external_initializers_file_name": WEIGHTS_FILE,
        "session.optimized_model_external_initializers_min_size_in_bytes": str(_SMALLEST_WEIGHT),
        # Known since onnxruntime 1.21; an older one packs at every start.
        "session.save_external_prepacked_constant_initializers": "1",
    }.items():
        options.add_session_config_entry(name, value)
