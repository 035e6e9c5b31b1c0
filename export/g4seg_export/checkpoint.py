"""Reading the files of a checkpoint: configurations, weights, modules. What is wrong with them is one line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import transformers
from safetensors import SafetensorError, safe_open

from g4seg_export.errors import SourceError
from g4seg_export.hub import Weights


def read_json(path: Path, name: str) -> dict[str, Any]:
    """The JSON object in `path`; `name` is what messages call the model.

    Raises:
        SourceError: if the file is not there, or holds something else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SourceError(f"{name} has no {path.parent.name}/{path.name}") from error
    except (OSError, ValueError) as error:
        raise SourceError(f"{name}: {path.parent.name}/{path.name} cannot be read as JSON") from error
    if not isinstance(data, dict):
        raise SourceError(f"{name}: {path.parent.name}/{path.name} does not hold a JSON object")
    return data


def find_weights(weights: Weights, root: Path, name: str) -> list[Path]:
    """The weight files of one module below `root`, sorted.

    Raises:
        SourceError: if there are none.
    """
    files = weights.files(root)
    if not files:
        where = f"{weights.folder}/" if weights.folder else ""
        raise SourceError(f"{name} has no weights {where}{weights.safetensors}.safetensors (or {weights.binary}.bin)")
    return files


def stored_half(files: list[Path]) -> bool:
    """Whether most of the floating-point tensors in these safetensors files are float16.

    Raises:
        SourceError: if a file is damaged.
    """
    counts = {"F16": 0, "other": 0}
    for path in files:
        if path.suffix != ".safetensors":
            return False
        try:
            with safe_open(path, "pt") as handle:
                for key in handle.keys():  # noqa: SIM118 - the handle is no mapping
                    dtype = handle.get_slice(key).get_dtype()
                    if dtype.startswith(("F", "BF")):
                        counts["F16" if dtype == "F16" else "other"] += 1
        except SafetensorError as error:
            raise SourceError(f"{path.parent.name}/{path.name} is truncated or not a safetensors file") from error
    return counts["F16"] > counts["other"]


def load_module(loader: Callable[..., Any], folder: Path, name: str) -> Any:
    """What `loader` (a from_pretrained) makes of `folder`, in float32, for inference.

    Raises:
        SourceError: if the weights cannot be read, or lack a tensor.
    """
    with quiet_libraries(), loading(name, "the weights"):
        module, info = loader(folder, local_files_only=True, output_loading_info=True)
    missing = sorted(key for key in info["missing_keys"] if not key.endswith("position_ids"))
    if missing:
        # The loaders fill such weights at random and go on.
        raise SourceError(f"{name}: the weights lack {len(missing)} tensors, the first is {missing[0]}")
    return module.float().eval()


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Loading a checkpoint without the libraries' remarks and progress bars; what matters is checked here."""
    diffusers_logs: Any = diffusers.utils.logging
    transformers_logs: Any = transformers.utils.logging
    levels = diffusers_logs.get_verbosity(), transformers_logs.get_verbosity()
    bars = transformers_logs.is_progress_bar_enabled()
    for logs in (diffusers_logs, transformers_logs):
        logs.set_verbosity_error()
    transformers_logs.disable_progress_bar()
    try:
        yield
    finally:
        diffusers_logs.set_verbosity(levels[0])
        transformers_logs.set_verbosity(levels[1])
        if bars:
            transformers_logs.enable_progress_bar()


@contextmanager
def loading(name: str, what: str) -> Iterator[None]:
    """Turns what the loaders raise on broken files into one line."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise SourceError(f"{name}: cannot load {what}: {reason[0]}") from error
