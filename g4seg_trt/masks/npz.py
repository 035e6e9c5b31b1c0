"""Format "npz": classes by their names in a .npz file, each an array [H,W]."""

from __future__ import annotations

from pathlib import Path

from g4seg_trt.errors import InputError
from g4seg_trt.masks.array import npz_headers, read_npz, write_npz
from g4seg_trt.masks.coarse import CoarseMasks, Naming
from g4seg_trt.masks.gather import choose, maps_by_key, named_maps, some

NAME = "npz"


def read(path: Path, naming: Naming) -> CoarseMasks:
    """Read the named classes, or all. An array called "background" is the background's own probability.

    Raises:
        MaskError: if the file cannot be read (`array.read_npz`), the sizes differ, or a named class is not in it.
        ClassNameError: for a name that the table does not have.
    """
    headers = npz_headers(path)
    chosen = choose(headers, naming, path)
    maps = read_npz(path, chosen.wanted(), naming.size)
    return named_maps(maps, chosen, naming, path, {NAME: (chosen, {key: headers[key][1] for key in maps})})


def write(path: Path, masks: CoarseMasks) -> None:
    """Write the maps under the names, in the order and the dtypes that they came in, the background as it was.

    Raises:
        OutputError: if the file cannot be written.
    """
    chosen, dtypes = masks.origin.get(NAME, (None, {}))
    maps = maps_by_key(masks, chosen)
    write_npz(path, {key: maps[key] for key in dtypes or maps}, dtypes)


def recognise(path: Path) -> str | None:
    """What tells that this is an archive of named maps, or None."""
    try:
        headers = npz_headers(path)
    except InputError:
        return None
    if any(len(shape) != 2 for shape, _ in headers.values()):
        return None
    return f"an archive of named arrays ({some(headers)})"
