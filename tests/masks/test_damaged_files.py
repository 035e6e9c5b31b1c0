"""Damaged and hostile files of every format: one clear line, whatever is in them, and never anything else."""

from __future__ import annotations

import os
import random
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from g4seg_trt.errors import MaskError
from g4seg_trt.masks.detect import detect
from g4seg_trt.masks.formats import FORMATS
from tests.masks.case import ALL, DOG, HEIGHT, WIDTH, Case, soft
from tests.masks.every_format import CASES
from tests.masks.tried import tried

ROUNDS = 20
"""How often a file is damaged in a test; many times that have been tried."""

# Of pycocotools itself, with numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(params=[name for name in CASES if name not in ("npy f4", "npy f8", "png RGBA", "psa in float16")])
def case(request: pytest.FixtureRequest) -> Case:
    one = CASES[request.param]
    if one.format.startswith("coco"):
        pytest.importorskip("pycocotools")
    return one


def files_of(path: Path) -> list[Path]:
    return sorted(path.iterdir()) if path.is_dir() else [path]


def damaged(whole: bytes, chance: random.Random) -> bytes:
    """With some bytes changed, cut out, put in or doubled, more often near the beginning."""
    data = bytearray(whole)
    for _ in range(chance.randint(1, 4)):
        at = min(int(chance.random() ** 2 * len(data)), max(len(data) - 1, 0))
        length = chance.choice([1, 1, 1, 2, 4, 8, 40])
        match chance.randrange(6):
            case 0 | 1 | 2:
                data[at : at + 1] = bytes([chance.choice([0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)])])
            case 3:
                del data[at : at + length]
            case 4:
                data[at:at] = data[at : at + length]
            case _:
                del data[at:]
    return bytes(data)


def test_bytes_that_are_wrong_or_missing(tmp_path: Path, case: Case) -> None:
    chance = random.Random(case.file + case.format)
    source = tmp_path / case.file
    case.save(source)
    assert tried(case, source, tmp_path / f"out-{case.file}")
    file = files_of(source)[-1]
    whole = file.read_bytes()
    failed = 0
    for _ in range(ROUNDS):
        file.write_bytes(damaged(whole, chance))
        failed += not tried(case, source, tmp_path / f"out-{case.file}")
    assert failed > ROUNDS // 4


def test_files_that_end_too_early(tmp_path: Path, case: Case) -> None:
    source = tmp_path / case.file
    case.save(source)
    file = files_of(source)[-1]
    target = tmp_path / f"out-{case.file}"
    assert tried(case, source, target)
    whole, expected = file.read_bytes(), [one.read_bytes() for one in files_of(target)]
    for length in [0, 1, 2, 3, 8, 16, *(len(whole) * part // 12 for part in range(1, 12))]:
        file.write_bytes(whole[:length])
        if tried(case, source, target):  # a picture may lack what comes after its pixels
            assert [one.read_bytes() for one in files_of(target)] == expected
            assert whole[length:].endswith(b"IEND\xaeB`\x82")


def chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 8
    while at < len(png):
        (length,) = struct.unpack_from(">I", png, at)
        found.append((png[at + 4 : at + 8], png[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def png_of(parts: list[tuple[bytes, bytes]]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


def test_pngs_whose_checksums_are_right_and_whose_parts_are_not(tmp_path: Path) -> None:
    chance = random.Random(7)
    for name in ("png L", "png I;16", "hard png 1", "hard png two colours", "png P", "index P", "index RGB"):
        case = CASES[name]
        source = tmp_path / case.file
        case.save(source)
        parts = chunks(source.read_bytes())
        for number in range(ROUNDS):
            changed = list(parts)
            place = chance.randrange(len(changed))
            match number % 4:
                case 0:
                    del changed[place]
                case 1:
                    changed.insert(place, changed[chance.randrange(len(changed))])
                case 2:
                    changed.insert(place, (b"tRNS", bytes(chance.randrange(256) for _ in range(chance.randrange(8)))))
                case _:
                    kind, data = changed[place]
                    changed[place] = kind, damaged(data, chance) if data else b"x"
            source.write_bytes(png_of(changed))
            tried(case, source, tmp_path / f"out-{case.file}")


HEADERS = [
    "{'descr': '<f4', 'fortran_order': False, 'shape': (7L, 11L)}",  # of Python 2
    "{'descr': '<f4', 'fortran_order': False, 'shape': (7, 11), 'more': 1}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (7, 11), 1: 1}",
    "{'descr': '<f4', 'fortran_order': 'no', 'shape': (7, 11)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (7, -11)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-7, -11)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': 7}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': ()}",
    f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({10**30}, 0)}}",
    f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**63}, {2**63})}}",
    "{'descr': (), 'fortran_order': False, 'shape': (7, 11)}",
    "{'descr': [], 'fortran_order': False, 'shape': (7, 11)}",
    "{'descr': [1], 'fortran_order': False, 'shape': (7, 11)}",
    "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (7, 11)}",
    "{'descr': {}, 'fortran_order': False, 'shape': (7, 11)}",
    "{'descr': None, 'fortran_order': False, 'shape': (7, 11)}",
    "{'descr': '|O', 'fortran_order': False, 'shape': (7, 11)}",
    "{'descr': '<c8', 'fortran_order': False, 'shape': (7, 11)}",
    "{'descr': '<M8[s]', 'fortran_order': False, 'shape': (7, 11)}",
    "{'descr': '|V4', 'fortran_order': False, 'shape': (7, 11)}",
    "{'descr': '<U1', 'fortran_order': False, 'shape': (7, 11)}",
    "{[]: 1}",
    "{" * 2000,
    "[" * 50,
    "-" * 5000 + "1",
    "()",
    "None",
    "'\\x00'",
    "é",
    "1" * 5000,
    " " * 20_000,
    "{'descr': '<f4', 'fortran_order': False, 'shape': (7, 11",
]


@pytest.mark.filterwarnings("ignore:Reading `.npy` or `.npz` file required additional header parsing:UserWarning")
def test_headers_of_arrays_that_no_program_writes(tmp_path: Path) -> None:
    values = soft().tobytes()
    for number, header in enumerate(HEADERS):
        for version in (b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x00")[: 4 if number < 2 else 1]:
            text = header.encode("utf-8")
            length = struct.pack("<H" if version[0] == 1 else "<I", len(text))
            array = b"\x93NUMPY" + version + length + text + values
            (tmp_path / "a.npy").write_bytes(array)
            with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("dog.npy", array)
            for name in ("npy f4", "clip-es", "npz"):
                case = CASES[name]
                passed = tried(case, tmp_path / case.file, tmp_path / f"out-{case.file}")
                assert passed <= (number == 0 and name in ("npy f4", "npz")), header


ARRAYS: list[Any] = [
    *(np.array(0.5), np.zeros(3), np.zeros((0, 3)), np.zeros((3, 0, 2)), np.zeros((1, 1, 1, 1)), np.zeros((1,) * 20)),
    *(soft() * 1j, soft().astype("M8[s]"), soft().astype("U5"), soft().astype("S5"), soft().astype(object)),
    *(soft().view([("a", "f4")]), soft() - 1, soft() + 1, soft() * np.nan, soft() - np.inf, soft().astype("f8") * 1e9),
    *(np.full((HEIGHT, WIDTH), 2**64 - 1, np.uint64), np.full((HEIGHT, WIDTH), -(2**63)), np.full((3, 7, 11), np.inf)),
    *(np.zeros((3, HEIGHT, WIDTH), complex), np.full((HEIGHT, WIDTH, 4), "a"), np.zeros((3, HEIGHT, WIDTH), object)),
]


def test_arrays_that_are_no_masks(tmp_path: Path) -> None:
    for array in ARRAYS:
        np.save(tmp_path / "a.npy", array, allow_pickle=True)
        np.savez(tmp_path / "a.npz", dog=array, cat=soft())
        (tmp_path / "a").mkdir(exist_ok=True)
        np.save(tmp_path / "a" / "dog.npy", array, allow_pickle=True)
        for name in ("npy f4", "array", "npz", "class-folder"):
            case = CASES[name]
            assert not tried(case, tmp_path / case.file, tmp_path / f"out-{case.file}")


@pytest.mark.parametrize("packing", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_archives_that_numpy_does_not_write(tmp_path: Path, packing: int) -> None:
    np.savez(tmp_path / "whole.npz", dog=soft())
    with zipfile.ZipFile(tmp_path / "whole.npz") as whole, zipfile.ZipFile(tmp_path / "a.npz", "w", packing) as archive:
        archive.writestr("dog.npy", whole.read("dog.npy"))
    with pytest.raises(MaskError, match="'dog' is packed in a way that numpy does not write"):
        FORMATS["npz"].read(tmp_path / "a.npz", ALL)  # type: ignore[union-attr]
    # What the sizes of an entry say is nothing to go by.
    raw = bytearray((tmp_path / "whole.npz").read_bytes())
    at = raw.rindex(b"PK\x01\x02")
    for offset in (20, 24):
        changed = bytearray(raw)
        changed[at + offset : at + offset + 4] = struct.pack("<I", 0xFFFFFFF0)
        (tmp_path / "a.npz").write_bytes(changed)
        tried(CASES["npz"], tmp_path / "a.npz", tmp_path / "out.npz")


def test_what_is_no_file(tmp_path: Path) -> None:
    """A pipe would be waited for, a device has no end."""
    os.mkfifo(tmp_path / "pipe")
    for case in CASES.values():
        for target in (tmp_path / "pipe", Path("/dev/zero"), tmp_path / "none"):
            link = tmp_path / f"link{Path(case.file).suffix}"
            link.unlink(missing_ok=True)
            link.symlink_to(target)
            with pytest.raises(MaskError, match=r"no such file|neither a file nor a folder"):
                detect(link, case.format, case.naming)
    with pytest.raises(MaskError, match=r"File name too long|no such file"):
        detect(tmp_path / ("x" * 300 + ".npy"))
    (tmp_path / "a").mkdir()
    os.mkfifo(tmp_path / "a" / "dog.png")
    detect(tmp_path / "a", "class-folder", DOG)  # looks at nothing that it need not
    with pytest.raises(MaskError, match=r"dog\.png: not a file that can be read"):
        FORMATS["class-folder"].read(tmp_path / "a", DOG)  # type: ignore[union-attr]
