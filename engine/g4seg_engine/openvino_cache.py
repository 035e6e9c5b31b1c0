"""Keeps what OpenVINO compiles of a large graph, so that the next start has nothing to optimise.

An entry is one file: what OpenVINO writes into a CACHE_DIR, the compiled graph and its weights. OpenVINO would map the
file itself, where nobody else can hold it. Here it is mapped first and lent to OpenVINO: while the weights are packed
for the processor, the pages that are done with are given back (see `mapped_files`), and they never become another's.
A UNet of 867 M parameters in bfloat16 is ready with 2.0 GB of memory for 3.6, after 3 seconds of computing for 4.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from g4seg_engine.cache import Keep, say_unusable
from g4seg_engine.mapped_files import Array, dropping_pages, map_file

MODEL_FILE = "model.blob"
"""The compiled graph in an entry."""

ERRORS = (RuntimeError, ValueError, TypeError)
"""OpenVINO has no type of its own."""

_SPACE = 1.0
"""Times the bytes of its network that an entry takes while it is made: as it is, or twice as float16."""

_HALF_FILE = "half.xml"
_HEADER_BYTES = 2**16


@dataclass(frozen=True)
class Request:
    """A compiled network, ready to run.

    Attributes:
        request: OpenVINO's.
        lent: memory that it reads for as long as it is there.
    """

    request: Any
    lent: object = None


def open_cached(
    openvino: ModuleType,
    core: Any,
    read: Callable[[], Any],
    config: Mapping[str, Any],
    keep: Keep,
    key: Mapping[str, Any],
    halved: bool,
) -> Request | None:
    """A request on the entry of a graph, which is made if there is none.

    Args:
        openvino: the package.
        core: what compiles.
        read: reads the graph, with a fixed batch size.
        config: how it is compiled.
        keep: makes or finds the entry of a key (see `cache.cached`).
        key: what the entry depends on, but for OpenVINO's version.
        halved: round its weights to float16.

    Returns:
        The request, or None where there is no entry to open: compile the graph itself.

    Raises:
        What `read` raises.
    """
    made: list[Request] = []

    def make(folder: Path) -> None:
        _make(openvino, core, read, config, halved, folder)
        try:
            # What cannot be opened is not kept. The file stays mapped when it is moved to its place.
            made.append(_open(openvino, core, folder / MODEL_FILE, config))
        except ERRORS as error:
            raise OSError(errno.EIO, f"OpenVINO cannot open what it has written: {last_line(error)}") from error

    entry = keep({**key, "version": openvino.__version__, "form": "compiled"}, _SPACE, make)
    if made:
        return made[0]
    if entry is None:
        return None
    try:
        return _open(openvino, core, entry / MODEL_FILE, config)
    except (*ERRORS, OSError) as error:
        say_unusable(entry, f"OpenVINO {openvino.__version__} cannot open {entry / MODEL_FILE}: {last_line(error)}")
        return None


def weights(model: Any) -> Iterator[Array]:
    """The constants of a model; each array keeps its memory alive, be it a mapped file's."""
    for node in model.get_ops():
        if node.get_type_name() == "Constant":
            yield node.get_data()


def last_line(error: Exception) -> str:
    """What went wrong in one line: OpenVINO's messages begin with its own source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _make(
    openvino: ModuleType, core: Any, read: Callable[[], Any], config: Mapping[str, Any], halved: bool, folder: Path
) -> None:
    half, path = folder / _HALF_FILE, folder / MODEL_FILE
    model = read()
    needed = sum(array.nbytes for array in weights(model))
    try:
        if halved:
            # By way of a file, the weights are never in memory as float16 and packed at once.
            with dropping_pages(weights(model)):
                openvino.save_model(model, half, compress_to_fp16=True)
            model = core.read_model(half)
        with dropping_pages(weights(model)):
            core.compile_model(model, "CPU", {**config, "CACHE_DIR": str(folder)})
    except ERRORS as error:
        # If it is not the disk, the graph itself tells.
        if shutil.disk_usage(folder).free < _SPACE * needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise OSError(errno.EIO, f"OpenVINO: {last_line(error)}") from error
    del model
    half.unlink(missing_ok=True)
    half.with_suffix(".bin").unlink(missing_ok=True)
    written = list(folder.iterdir())
    if len(written) != 1:
        raise OSError(errno.EIO, f"OpenVINO has written {len(written)} files, expected 1")
    # OpenVINO's own would be for no other user.
    path.touch()
    written[0].chmod(path.stat().st_mode)
    written[0].replace(path)


def _open(openvino: ModuleType, core: Any, path: Path, config: Mapping[str, Any]) -> Request:
    content = map_file(path)
    # A line about the file comes first, for OpenVINO's own look-up.
    header = content[:_HEADER_BYTES].tobytes().find(b"\n") + 1
    lent = np.asarray(_Lent(content[header:]))
    with dropping_pages([content]):
        compiled = core.import_model(openvino.Tensor(lent, shared_memory=True), "CPU", dict(config))
        return Request(compiled.create_infer_request(), lent)


class _Lent:
    """An array as OpenVINO takes it: it asks for one that may be written to, though it only reads.

    Args:
        array: held for as long as a view of this is there.
    """

    def __init__(self, array: Array) -> None:
        self._array = array
        self.__array_interface__ = {**array.__array_interface__, "data": (array.ctypes.data, False)}
