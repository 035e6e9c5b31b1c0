"""Pickles read as data: masks come out, nothing that a file names is called, no file makes much of little."""

from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
import sys
import tempfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from g4seg_trt.errors import MaskError
from g4seg_trt.masks.pickle_writer import digest, write_npy_dict, write_pickled_list
from g4seg_trt.masks.pickles import load_npy_dict, load_pickle, peek_pickled_list
from g4seg_trt.masks.tensors import MAGIC, VERSION, Storage, Tensor, open_tensors
from tests.masks.dict_files import Call, load, makes_folder, save, save_old, save_raw

EVERYTHING: dict[Any, Any] = {
    "numbers": (1, -5, 10**30, 2.5, True, False, None),
    "text": "猫 \\ \n",
    "bytes": b"abc\xff",
    "empty": b"",
    "bytearray": bytearray(b"\x00\x01"),
    "list": [[], [1, "a"]],
    "set": {1, 2, "x"},
    "frozenset": frozenset([3]),
    "ordered": OrderedDict([("b", 1), ("a", 2)]),
    3: {"nested": ()},
    (1, "key"): None,
    "half": np.linspace(0, 1, 24, dtype=np.float16).reshape(2, 3, 4),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big-endian": np.arange(3, dtype=">i4"),
    "strings": np.array(["ab", "c"]),
    "truth": np.array([[True, False]]),
    "nothing": np.zeros((0, 3), np.float32),
    "point": np.array(2.5),
    "objects": np.array([1, "a", None], dtype=object),
    "scalar": np.float32(0.1),
    "key": np.int64(7),
    "tensor": torch.arange(6.0).reshape(2, 3),
    "view": torch.arange(12)[2:].reshape(2, 5).T,
    "no elements": torch.zeros(0, 4),
    "brain": torch.tensor([0.5, 2.0], dtype=torch.bfloat16),
    "size": torch.Size([4, 5]),
}


def plain(value: Any) -> Any:
    """A value in a form that == compares, with its type."""
    if isinstance(value, Tensor):
        value = value.array("a tensor")
    elif isinstance(value, torch.Tensor):
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    if isinstance(value, np.ndarray):
        return ("array", value.dtype.newbyteorder("=").str, value.shape, value.tolist())
    if isinstance(value, dict):
        return (type(value), [(key, plain(inner)) for key, inner in value.items()])
    if isinstance(value, (list, tuple)):
        return (tuple if isinstance(value, torch.Size) else type(value), [plain(inner) for inner in value])
    return (type(value), value)


@pytest.mark.parametrize("protocol", range(6))
def test_what_masks_need_is_read_in_every_protocol(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(EVERYTHING, protocol))
    assert plain(load_pickle(path)) == plain(EVERYTHING)


@pytest.mark.parametrize("writer", [save, save_old])
def test_dicts_of_numpy_new_and_old_are_read(tmp_path: Path, writer: Any) -> None:
    writer(tmp_path / "a.npy", EVERYTHING)
    assert plain(load_npy_dict(tmp_path / "a.npy")) == plain(EVERYTHING)


def test_a_file_of_python_2_is_read(tmp_path: Path) -> None:
    """There strings are bytes: names, dtypes and the raw data come as the opcodes of str."""
    raw = struct.pack("<2f", 0.25, 1.0)
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
        b"(K\x01(K\x01K\x02tcnumpy\ndtype\n(U\x02f4K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"U" + bytes([len(raw)]) + raw + b"tb"
    )
    save_raw(tmp_path / "a.npy", b"\x80\x02}(U\x04keysK\x01U\x03cam" + array + b"u.")
    found = load_npy_dict(tmp_path / "a.npy")
    assert found["keys"] == 1
    assert found["cam"].dtype == np.float32
    assert found["cam"].tolist() == [[0.25, 1.0]]
    # Python 3 reads the file in the same way when told to.
    with (tmp_path / "a.npy").open("rb") as file:
        file.seek(128)
        assert pickle.load(file, encoding="latin1")["cam"].tolist() == [[0.25, 1.0]]


KEYS = st.integers(-(2**61) + 2, 2**61 - 2)  # beyond that whole numbers share their hashes

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.binary(max_size=8)
    | arrays.arrays(st.sampled_from([np.float16, np.float32, np.int64, np.bool_]), arrays.array_shapes(min_side=0)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=5) | KEYS, inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=80)
@given(st.dictionaries(st.text(max_size=5) | KEYS, VALUES, max_size=4), st.integers(0, 5))
def test_any_data_is_read_and_written_as_it_was(value: dict[Any, Any], protocol: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        path.write_bytes(pickle.dumps(value, protocol))
        found = load_pickle(path)
        assert repr(plain(found)) == repr(plain(value))
        with path.open("wb") as file:
            write_npy_dict(file, value)
        assert repr(plain(load_npy_dict(path))) == repr(plain(value))
        assert repr(plain(load(path))) == repr(plain(value))
        assert digest(found) == digest(value)


def test_what_is_written_names_nothing_that_an_older_numpy_lacks(tmp_path: Path) -> None:
    first, second = tmp_path / "a.npy", tmp_path / "b.npy"
    save(first, EVERYTHING)
    for path, source in ((first, first), (second, first)):
        value = load_npy_dict(source)
        with path.open("wb") as file:
            write_npy_dict(file, value)
    assert first.read_bytes() == second.read_bytes()
    assert b"numpy._core" not in first.read_bytes()
    assert plain(load(first)) == plain(EVERYTHING)


def test_a_list_is_written_value_by_value(tmp_path: Path) -> None:
    with (tmp_path / "a.pkl").open("wb") as file:
        write_pickled_list(file, ({"n": n} for n in range(3)))
    assert pickle.loads((tmp_path / "a.pkl").read_bytes()) == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert peek_pickled_list(tmp_path / "a.pkl") == {"n"}


def test_what_no_mask_holds_is_not_written(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as file, pytest.raises(TypeError, match="complex"):
        write_npy_dict(file, {"a": 1j})


@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "?"])
def test_tensors_written_are_those_of_torch(tmp_path: Path, dtype: str) -> None:
    array = (np.arange(24).reshape(2, 3, 4) % 3).astype(dtype)
    with (tmp_path / "a.npy").open("wb") as file:
        write_npy_dict(file, {"t": Tensor.of(array.transpose(2, 0, 1))})
    tensor = load(tmp_path / "a.npy")["t"]
    assert isinstance(tensor, torch.Tensor)
    assert not tensor.requires_grad
    assert tensor.numpy().dtype == array.dtype
    assert (tensor.numpy() == array.transpose(2, 0, 1)).all()
    with pytest.raises(MaskError, match="uint16"):
        Tensor.of(np.zeros(2, np.uint16))


# ---- hostile files


def wrapped(kind: str, evil: object) -> object:
    """A call hidden where a value of a mask may stand."""
    if kind == "array":
        inner = np.empty((), dtype=object)
        inner[()] = [evil]
        return {"keys": inner}
    if kind == "key":
        return {"keys": {(1, Folded(evil)): 1}}
    return {"plain": {"keys": evil}, "list": [[evil]], "ordered": OrderedDict(a=evil)}[kind]


class Folded:
    """An object with a call as its state."""

    def __init__(self, evil: object) -> None:
        self.evil = evil


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", ["plain", "list", "ordered", "array", "key"])
def test_a_hidden_call_is_refused_by_name_and_not_made(tmp_path: Path, kind: str, protocol: int) -> None:
    folder = tmp_path / "made"
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(wrapped(kind, makes_folder(folder)), protocol))
    with pytest.raises(
        MaskError, match=r"a\.pkl wants .*(eval|Folded|copyreg|copy_reg).*, which no mask needs: refused"
    ):
        load_pickle(path)
    save(tmp_path / "a.npy", wrapped(kind, makes_folder(folder)))
    with pytest.raises(MaskError, match="refused"):
        load_npy_dict(tmp_path / "a.npy")
    assert not folder.exists()
    # The file is what it is meant to be: Python's own unpickler makes the folder.
    pickle.loads(path.read_bytes())
    assert folder.is_dir()


def test_what_pickle_scanners_look_for_is_refused_by_name(tmp_path: Path) -> None:
    for called in (os.system, os.mkdir, eval, exec, compile, open, getattr, __import__, subprocess.Popen, print):
        name = getattr(called, "__name__")  # noqa: B009 - not all of these are of one type
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(Call(called, "made")))
        with pytest.raises(MaskError, match=rf"wants \w+\.{name}, which no mask needs: refused"):
            load_pickle(tmp_path / "a.pkl")


@pytest.mark.parametrize(
    "name",
    [
        "numpy.testing run_module_suite",
        "numpy.testing._private.utils runstring",
        "numpy.f2py compile",
        "numpy load",
        "numpy fromfile",
        "numpy memmap",
        "numpy matrix",
        "numpy recarray",
        "numpy vectorize",
        "numpy frompyfunc",
        "numpy.core.multiarray fromfile",
        "numpy.core.multiarray array",
        "numpy._core.multiarray ndarray.tofile",
        "numpy.core.numeric frombuffer",
        "numpy.lib.npyio os.system",
        "numpy ndarray.__reduce__",
        "numpy dtype.__class__",
        "torch load",
        "torch.load __call__",
        "torch.hub load",
        "torch.storage TypedStorage",
        "torch.storage io.open",
        "torch._utils _rebuild_parameter",
        "torch._utils _import_dotted_name",
        "torch.utils.data DataLoader",
        "builtins getattr",
        "builtins object",
        "builtins complex",
        "builtins bytes.fromhex",
        "collections OrderedDict.fromkeys",
        "collections defaultdict",
        "_codecs decode",
        "_codecs lookup",
        "copyreg _reconstructor",
        "functools partial",
        "operator attrgetter",
        "pickle loads",
        "mmseg.structures SegDataSample",
    ],
)
def test_names_beside_those_of_the_table_are_refused(tmp_path: Path, name: str) -> None:
    module, _, attribute = name.partition(" ")
    path = tmp_path / "a.npy"
    texts = b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, attribute))
    for opcodes in (f"c{module}\n{attribute}\n".encode(), texts + b"\x93", f"(i{module}\n{attribute}\n".encode()):
        save_raw(path, b"\x80\x04" + opcodes + b")R.")
        with pytest.raises(MaskError, match="which no mask needs: refused") as caught:
            load_npy_dict(path)
        assert attribute in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("opcodes", "name"),
    [
        (b"\x82\x01.", "EXT1"),
        (b"P1\n.", "PERSID"),
        (b"K\x01Q.", "BINPERSID"),
        (b"(cnumpy\nndarray\no.", "OBJ"),
        (b"cnumpy\nndarray\n)\x81.", "NEWOBJ"),
        (b"cnumpy\nndarray\n)}\x92.", "NEWOBJ_EX"),
        (b"\x97.", "NEXT_BUFFER"),
        (b"\x98.", "READONLY_BUFFER"),
    ],
)
def test_opcodes_that_make_other_objects_are_refused(tmp_path: Path, opcodes: bytes, name: str) -> None:
    save_raw(tmp_path / "a.npy", b"\x80\x05" + opcodes)
    with pytest.raises(MaskError, match=f"wants the pickle opcode {name}, which no mask needs"):
        load_npy_dict(tmp_path / "a.npy")


DTYPE = b"cnumpy\ndtype\n(X\x02\x00\x00\x00f4\x89\x88tR"
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btR"


@pytest.mark.parametrize(
    "opcodes",
    [
        ARRAY + b".",  # never filled
        ARRAY + b"(K\x01(K\x02t" + DTYPE + b"\x89C\x04aaaatb.",  # fewer bytes than elements
        ARRAY + b"(K\x01(K\x01t" + DTYPE + b"\x89C\x08aaaaaaaatb.",  # more
        ARRAY + b"(K\x01(J\xff\xff\xff\xfft" + DTYPE + b"\x89C\x00tb.",  # a negative side
        ARRAY + b"(K\x01(K\x00\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7ft" + DTYPE + b"\x89C\x00tb.",  # an endless one
        ARRAY + b"(K\x01(K\x01t" + DTYPE + b"\x89]K\x01atb.",  # objects as numbers
        ARRAY + b"(K\x01(K\x01tcnumpy\ndtype\n(X\x01\x00\x00\x00O\x89\x88tR\x89C\x08aaaaaaaatb.",  # numbers as objects
        ARRAY + b"(K\x01(K\x02tcnumpy\ndtype\n(X\x01\x00\x00\x00O\x89\x88tR\x89]K\x01atb.",  # fewer objects
        ARRAY + b"0" + b"K\x01Nb.",  # a state for a number
        ARRAY
        + b"(K\x01(K\x01t"
        + DTYPE
        + b"\x89C\x04aaaatb(K\x01(K\x01t"
        + DTYPE
        + b"\x89C\x04aaaatb.",  # filled twice
        ARRAY.replace(b"K\x00t", b"K\x09t") + b".",
        ARRAY.replace(b"cnumpy\nndarray\n", b"cnumpy\ndtype\n") + b".",
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(X\x01\x00\x00\x00O\x89\x88tRK\x01tR.",
        b"cnumpy.core.multiarray\nscalar\n(" + DTYPE + b"C\x03abctR.",
        b"cnumpy.core.numeric\n_frombuffer\n(C\x04aaaa" + DTYPE + b"(K\x02tX\x01\x00\x00\x00CtR.",
        b"cnumpy.core.numeric\n_frombuffer\n(C\x04aaaa" + DTYPE + b"(K\x01tX\x01\x00\x00\x00KtR.",
        DTYPE.replace(b"f4", b"M8") + b".",
        DTYPE.replace(b"f4", b"V8") + b".",
        DTYPE.replace(b"f4", b"S0") + b".",
        DTYPE + b"(K\x03X\x01\x00\x00\x00<N(X\x01\x00\x00\x00at}J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb.",
        b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00utf-7tR.",
        b"c_codecs\nencode\n(X\x03\x00\x00\x00\xe7\x8c\xabX\x06\x00\x00\x00latin1tR.",
        b"}]K\x01s.",  # a list as a key
        b"}\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x1fK\x01s.",  # whole numbers whose hashes are one: 2**61 - 1
        b"}\x8a\x08\x01\x00\x00\x00\x00\x00\x00\xe0K\x01s.",  # minus that
        b"}\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x00\x01K\x01s.",
        b"}J\x00\x00\x01\x00\x85K\x01s.",  # tuples of numbers, which can be chosen so too
        b"}(K\x01K\x02K\x03K\x04K\x05tK\x01s.",
        b"}G?\xf0\x00\x00\x00\x00\x00\x00\x85K\x01s.",
        b"}" + b")" + b"\x85" * 100_000 + b"K\x01s.",  # a key that would end the interpreter when hashed
        b"(" + b")" + b"\x85" * 100_000 + b"\x91.",
        b"cbuiltins\nset\n(]" + b")" + b"\x85" * 100_000 + b"atR.",
        b"K\x01.K\x02",  # a number instead of a dict
        b"cnumpy\nndarray\n.",
        DTYPE + b".",
        b"}X\x01\x00\x00\x00acnumpy\nndarray\ns.",
        b"}X\x01\x00\x00\x00actorch.storage\n_load_from_bytes\n(C\x01atRs.",
        b"K\x01K\x01R.",
        b"cnumpy\ndtype\nK\x01R.",
        b"cnumpy\ndtype\n)R.",
        b"ccollections\nOrderedDict\n(K\x01K\x02K\x03K\x04tR.",
        b"ctorch._utils\n_rebuild_tensor_v2\n(C\x01aK\x00K\x01\x85K\x01\x85\x89NtR.",
        b"ctorch._utils\n_rebuild_tensor_v2\n(ctorch.storage\n_load_from_bytes\n(C\x01atRK\x00K\x01\x85)\x89NtR.",
        b"ctorch._utils\n_rebuild_tensor_v2\n(ctorch.storage\n_load_from_bytes\n(C\x01atRJ\xff\xff\xff\xffK\x01\x85K\x01\x85\x89NtR.",
        b"ctorch._utils\n_rebuild_tensor_v2\n(ctorch.storage\n_load_from_bytes\n(C\x01atRK\x00K\x01\x85K\x01\x85\x89}K\x01K\x01stR.",
        b"0.",
        b"a.",
        b"t.",
        b"h\x07.",
        b"\xff",
        b"",
    ],
)
def test_states_and_arguments_that_no_writer_writes(tmp_path: Path, opcodes: bytes) -> None:
    save_raw(tmp_path / "a.npy", b"\x80\x05" + opcodes)
    with pytest.raises(MaskError, match=r"a\.npy") as caught:
        load_npy_dict(tmp_path / "a.npy")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


BOMBS = {
    "long bytes": b"\x8e" + struct.pack("<Q", 2**62),
    "long text": b"\x8d" + struct.pack("<Q", 2**40),
    "long bytearray": b"\x96" + struct.pack("<Q", 2**40),
    "a far memo": b"Nr\xff\xff\xff\xff" + b".",
    "many lists": b"](" + b"]" * 3_000_000 + b"e.",
    "repeated text": b"X"
    + struct.pack("<I", 10**6)
    + b"a" * 10**6
    + b"q\x000]("
    + b"c_codecs\nencode\n(h\x00X\x06\x00\x00\x00latin1tR" * 2000
    + b"e.",
    "repeated list": b"](" + b"K\x01" * 50_000 + b"eq\x000](" + b"cbuiltins\nset\nh\x00\x85R" * 2000 + b"e.",
    "deep lists": b"]" * 100_000 + b"a" * 99_999 + b".",
    "a list in itself": b"]q\x00h\x00a.",
    "laughs": b"]q\x00"
    + b"".join(b"](" + bytes((ord("h"), n)) * 10 + b"eq" + bytes([n + 1]) for n in range(30))
    + b".",
}


SAID = {
    "long bytes": "only 0 remain",
    "long text": "only 0 remain",
    "long bytearray": "only 0 remain",
    "a far memo": "a pickled NoneType, expected a dict",
    "many lists": "pickle opcodes in 3000006 bytes: refused",
    "repeated text": "makes far more of its",
    "repeated list": "makes far more of its",
    "deep lists": "nest deeper than 32",
    "a list in itself": "nest deeper than 32",
    "laughs": "nest deeper than 32 or repeat each other",
}


def test_small_files_cannot_make_large_objects(tmp_path: Path) -> None:
    """In a process that may not grow: what is refused is refused before it is made."""
    for name, opcodes in BOMBS.items():
        save_raw(tmp_path / f"{name}.npy", b"\x80\x05" + opcodes)
    program = f"""
import resource
from pathlib import Path
from g4seg_trt.errors import MaskError
from g4seg_trt.masks.pickles import load_npy_dict
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 29),) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
for path in Path({str(tmp_path)!r}).iterdir():
    try:
        load_npy_dict(path)
    except MaskError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    for name in BOMBS:
        said = [line for line in done.stdout.splitlines() if f"{name}.npy" in line]
        assert len(said) == 1, name
        assert SAID[name] in said[0]


# ---- torch's storages


def tensor_pickle(data: bytes, size: tuple[int, ...] = (1,), stride: tuple[int, ...] = (1,), offset: int = 0) -> Tensor:
    return Tensor(Storage(data), offset, size, stride)


def test_a_storage_with_a_call_in_it_is_refused_and_not_made(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    evil = MAGIC + VERSION + pickle.dumps({}, 2) + pickle.dumps(makes_folder(folder), 2) + pickle.dumps([], 2)
    path = tmp_path / "a.npy"
    with path.open("wb") as file:
        write_npy_dict(file, {"keys": tensor_pickle(evil)})
    tensor = load_npy_dict(path)["keys"]
    with pytest.raises(
        MaskError, match=r"keys: a torch storage with the pickle opcode TUPLE1, which none needs: refused"
    ) as caught:
        tensor.array(f"{path}, keys")
    assert "\n" not in str(caught.value)
    with pytest.raises(MaskError):
        open_tensors({"a": [np.array([tensor, None])]}, "a file")
    assert not folder.exists()
    # torch's own reader, which numpy.load would call, makes the folder.
    with pytest.raises(Exception):  # noqa: B017 - after the folder it finds no storage
        load(path)
    assert folder.is_dir()


def test_storages_in_other_containers_of_torch_are_refused(tmp_path: Path) -> None:
    torch.save(torch.ones(3), tmp_path / "zip.pt")
    torch.save(torch.ones(3), tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(MaskError, match="in a format that torch does not write"):
        tensor_pickle((tmp_path / "zip.pt").read_bytes()).array("a file")
    with pytest.raises(MaskError, match=r"a torch storage with the pickle opcode .*: refused"):
        tensor_pickle((tmp_path / "legacy.pt").read_bytes()).array("a file")


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [
        ((7,), (1,), 0),
        ((6,), (1,), 1),
        ((2, 3), (3, 2), 0),
        ((10**6,), (0,), 0),
        ((2,), (2**62,), 0),
        ((1,), (1,), 2**70),
    ],
)
def test_a_view_beyond_its_storage_is_refused(size: tuple[int, ...], stride: tuple[int, ...], offset: int) -> None:
    six = Tensor.of(np.arange(6.0)).storage.data
    with pytest.raises(MaskError, match="in a storage of 6 elements"):
        tensor_pickle(six, size, stride, offset).array("a file")


def test_cut_and_lying_storages_are_refused() -> None:
    whole = Tensor.of(np.arange(6.0)).storage.data
    for length in range(len(whole)):
        with pytest.raises(MaskError):
            tensor_pickle(whole[:length]).array("a file")
    with pytest.raises(MaskError, match="of 6 elements in 49 bytes"):
        tensor_pickle(whole + b"\0").array("a file")
    six = struct.pack("<q", 6)
    assert whole.count(six) == 2
    for count in (-1, 0, 5, 7, 2**28, 2**40, 2**62):
        for changed in (whole.replace(six, struct.pack("<q", count)), whole.replace(six, struct.pack("<q", count), 1)):
            with pytest.raises(MaskError):
                tensor_pickle(changed).array("a file")
    for old, new, message in (
        (b"DoubleStorage", b"ComplexDoubleStorage", "a torch ComplexDoubleStorage, which no mask needs"),
        (b"ctorch\nDouble", b"cos\nDouble", "a os DoubleStorage, which no mask needs"),
        (b"]X\x01\x00\x00\x000a.", b"].", "another key than its own"),
        (b"]X\x01\x00\x00\x000a.", b"]X\x01\x00\x00\x001a.", "another key than its own"),
        (b"storage", b"modules", "something else than one torch storage"),
    ):
        assert old in whole
        with pytest.raises(MaskError, match=message):
            tensor_pickle(whole.replace(old, new, 1)).array("a file")


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_a_storage_that_states_what_it_does_not_hold_takes_no_memory() -> None:
    """Without a key torch makes as many elements as are stated and fills none."""
    whole = Tensor.of(np.zeros(1, np.float32)).storage.data
    count = struct.pack("<q", 2**28)
    start = whole.index(b"\x8a\x08") + 2
    bare = whole[:start] + count + b"NtQ.\x80\x02]."
    assert torch.load(io.BytesIO(bare), weights_only=True).untyped().nbytes() == 2**30
    with pytest.raises(MaskError, match="another key than its own"):
        tensor_pickle(bare, (2**14, 2**14), (2**14, 1)).array("a file")


@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # in the damage
@settings(deadline=None, max_examples=150)
@given(st.binary(min_size=1, max_size=12), st.integers(0, 260))
def test_no_damage_of_a_storage_gives_another_error(noise: bytes, place: int) -> None:
    whole = pickled_storage(torch.arange(6.0))
    try:
        tensor_pickle(whole[:place] + noise + whole[place + len(noise) :]).array("a file")
    except MaskError as error:
        assert str(error).startswith("a file: ")


def pickled_storage(tensor: torch.Tensor) -> bytes:
    """What torch gives `_load_from_bytes`."""
    data: bytes = tensor.storage().__reduce__()[1][0]  # type: ignore[no-untyped-call]
    return data


@pytest.mark.parametrize(
    "dtype", ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
)
def test_storages_of_torch_are_read_without_it(tmp_path: Path, dtype: str) -> None:
    tensor = (torch.arange(60) % 7).reshape(3, 4, 5).to(getattr(torch, dtype)).permute(2, 0, 1)
    save(tmp_path / "a.npy", {"t": tensor})
    expected = (tensor.float() if dtype == "bfloat16" else tensor).numpy()
    np.save(tmp_path / "b.npy", expected)
    program = f"""
import sys
sys.modules["torch"] = None
from pathlib import Path
import numpy as np
from g4seg_trt.masks.pickles import load_npy_dict
folder = Path({str(tmp_path)!r})
found = load_npy_dict(folder / "a.npy")["t"].array("t")
expected = np.load(folder / "b.npy")
assert found.dtype == expected.dtype and found.shape == expected.shape and (found == expected).all()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr


# ---- damaged files


def test_cut_and_foreign_files_give_the_typed_error(tmp_path: Path) -> None:
    save(tmp_path / "whole.npy", EVERYTHING)
    whole = (tmp_path / "whole.npy").read_bytes()
    path = tmp_path / "cut.npy"
    for length in range(0, len(whole) - 1, 41):
        path.write_bytes(whole[:length])
        with pytest.raises(MaskError, match=r"cut\.npy"):
            load_npy_dict(path)
    for content, message in (
        (np.zeros((2, 2)), r"a \.npy file of float64 \[2, 2\], expected a pickled dict"),
        (np.array([{}, {}]), "expected a pickled dict"),
        (np.array([[]], dtype=object), "expected a pickled dict"),
        (np.array("text", dtype=object), "a pickled str, expected a dict"),
    ):
        np.save(path, content)
        with pytest.raises(MaskError, match=message):
            load_npy_dict(path)
    np.save(path, np.array([{"a": 1}]))
    assert load_npy_dict(path) == {"a": 1}
    for reader in (load_npy_dict, load_pickle):
        path.write_text("not a pickle")
        with pytest.raises(MaskError, match="damaged"):
            reader(path)
        with pytest.raises(MaskError, match="no such file"):
            reader(tmp_path / "missing")
        with pytest.raises(MaskError, match="damaged"):
            reader(tmp_path)
    assert peek_pickled_list(path) == frozenset()
    assert peek_pickled_list(tmp_path / "missing") == frozenset()


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=60), st.integers(0, 400), st.integers(0, 5))
def test_no_damage_gives_another_error(noise: bytes, place: int, protocol: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.pkl"
        whole = pickle.dumps({key: EVERYTHING[key] for key in ("half", "list", "scalar", "set", "ordered")}, protocol)
        path.write_bytes(whole[:place] + noise + whole[place + len(noise) :])
        try:
            load_pickle(path)
        except MaskError as error:
            assert str(path) in str(error)
