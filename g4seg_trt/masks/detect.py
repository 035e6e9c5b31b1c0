"""Which format a file of coarse masks has: told by its content, and said with the evidence.

Every format whose files have the suffix looks into the file; exactly one must find its own. A PNG is told with the
class table (`png_kind`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from g4seg_trt.atomic import reason
from g4seg_trt.errors import InputError, MaskError
from g4seg_trt.masks.array import npz_headers, open_npy
from g4seg_trt.masks.class_folder import class_files
from g4seg_trt.masks.coarse import Naming
from g4seg_trt.masks.formats import FORMATS, CollectionFormat, Format, format_named
from g4seg_trt.masks.pickles import load_npy_dict
from g4seg_trt.masks.png_kind import PngKind, png_kind

_TWINS = frozenset({"psa", "psa-crf"})
"""One layout with two meanings: their values make one likelier and exclude none."""


@dataclass(frozen=True)
class Detected:
    """What a file was taken for.

    Attributes:
        format: one of FORMATS.
        evidence: a line that names the file, the format and what told it.
    """

    format: Format | CollectionFormat
    evidence: str


def detect(path: Path, asked: str | None = None, naming: Naming | None = None) -> Detected:
    """Tell the format of a file, or of a folder that holds one image's masks.

    Args:
        path: the file.
        asked: the name of the format that it is to be taken for. That decides where the file may be of several, and
            of files that nothing tells.
        naming: class names and table, which tell pictures of class ids from soft masks.

    Raises:
        MaskError: if the file is missing, no format or more than one is recognised, or it is evidently of another
            format than the one asked for.
        ConfigError: if no format has the name `asked`.
    """
    naming = naming or Naming()
    wanted = None if asked is None else format_named(asked)
    _check_there(path)
    if wanted is not None:
        return _detected(path, wanted, _confirm(path, wanted, naming))
    candidates = _candidates(path)
    if path.suffix.lower() == ".png" and not path.is_dir():
        kind = png_kind(path, naming)
        return _detected(path, FORMATS[kind.name], kind.evidence)
    found = _recognised(path, candidates)
    if len(found) == 1:
        return _detected(path, *found[0])
    if found:
        readings = "; ".join(f"{one.name}: {words}" for one, words in found)
        raise MaskError(f"{path}: may be of several formats ({readings}); say which with --format")
    raise MaskError(f"{path}: {_unknown(path, candidates)}")


def _check_there(path: Path) -> None:
    try:
        if not path.exists():
            raise MaskError(f"{path}: no such file")
        if not path.is_file() and not path.is_dir():  # a pipe would be waited for, a device has no end
            raise MaskError(f"{path}: neither a file nor a folder")
    except OSError as error:
        raise MaskError(f"{path}: cannot be read ({reason(error)})") from error


def _detected(path: Path, one: Format | CollectionFormat, words: str) -> Detected:
    return Detected(one, f"{path.name}: {one.name} ({words})")


def _candidates(path: Path) -> list[Format | CollectionFormat]:
    """The formats of this suffix, or of folders."""
    suffix = path.suffix.lower()
    return [one for one in FORMATS.values() if (not one.suffixes if path.is_dir() else suffix in one.suffixes)]


def _recognised(
    path: Path, candidates: Sequence[Format | CollectionFormat]
) -> list[tuple[Format | CollectionFormat, str]]:
    looked = [(one, one.recognise(path)) for one in candidates]
    return [(one, words) for one, words in looked if words is not None]


def _confirm(path: Path, wanted: Format | CollectionFormat, naming: Naming) -> str:
    """Evidence for the format that was asked for; raises MaskError for evidence of another."""
    if path.suffix.lower() == ".png" and not path.is_dir():
        kind = _kind_if_any(path, naming)
        others = [] if kind is None or not kind.certain else [(FORMATS[kind.name], kind.evidence)]
        words = kind.evidence if kind is not None and kind.name == wanted.name else None
    else:
        words = wanted.recognise(path)
        others = _recognised(path, [one for one in _candidates(path) if one is not wanted])
    others = [(one, told) for one, told in others if one is not wanted and not {one.name, wanted.name} <= _TWINS]
    if words is None and others:
        one, told = others[0]
        raise MaskError(f"{path}: asked for as {wanted.name}, but it is {one.name} ({told}); leave out --format")
    return f"{words}, as asked" if words is not None else "as asked"


def _kind_if_any(path: Path, naming: Naming) -> PngKind | None:
    try:
        return png_kind(path, naming)
    except InputError:
        return None  # the reader that was asked for says what is wrong


def _unknown(path: Path, candidates: Sequence[Format | CollectionFormat]) -> str:
    if not candidates:
        suffixes = dict.fromkeys(suffix for one in FORMATS.values() for suffix in one.suffixes)
        return f"no mask format has the suffix {path.suffix!r}, allowed: {', '.join(suffixes)}, or a folder"
    looked = "; ".join(f"{one.name}: {one.description}" for one in candidates)
    return f"of no known format{_fault(path)}; looked for {looked}"


def _fault(path: Path) -> str:
    """What is wrong with a file or folder that its reader could not even open."""
    readers: tuple[Callable[[Path], object], ...] = {
        ".npy": (open_npy, load_npy_dict),
        ".npz": (npz_headers,),
    }.get(path.suffix.lower(), ())
    if path.is_dir():
        readers = (class_files,)
    faults: list[str] = []
    for reader in readers:
        try:
            reader(path)
        except MaskError as error:
            faults.append(str(error).removeprefix(f"{path}: "))
    return f" ({faults[-1]})" if faults and len(faults) == len(readers) else ""
