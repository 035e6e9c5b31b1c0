"""manifest.json: write it, read it, and check an engine directory against it.

Opening a directory checks the schema, the networks' tensors, the size of every file and the sha256 of files
up to HASH_ON_OPEN bytes; ``every_hash`` checks them all. Whether a compiled artefact fits this machine is
checked by the backend that opens it.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from g4seg_engine import codec
from g4seg_engine.errors import EngineError, EngineIncompleteError, EngineMismatchError, EngineNotFoundError
from g4seg_engine.records import (
    MANIFEST_FILE,
    SCHEMA,
    ArtefactRecord,
    AutoencoderRecord,
    FileRecord,
    ImageEncoderRecord,
    InjectionRecord,
    Manifest,
    ModelRecord,
    NetworkRecord,
    TokenizerRecord,
    utc_now,
)
from g4seg_engine.spec import NETWORKS, TensorSpec, network_specs
from g4seg_engine.version import VERSION

__all__ = [
    "HASH_ON_OPEN",
    "MANIFEST_FILE",
    "SCHEMA",
    "ArtefactRecord",
    "AutoencoderRecord",
    "FileRecord",
    "ImageEncoderRecord",
    "InjectionRecord",
    "Manifest",
    "ModelRecord",
    "NetworkRecord",
    "TokenizerRecord",
    "check_engine",
    "file_sha256",
    "load_engine",
    "read_manifest",
    "utc_now",
    "write_manifest",
]

HASH_ON_OPEN = 64 * 2**20
"""Files up to this size are hashed whenever the engine is opened: some 40 ms for each."""

_CHUNK = 2**20


def load_engine(directory: str | Path, verify: bool = False) -> Manifest:
    """Reads the manifest and checks the directory against it.

    Args:
        directory: the engine directory.
        verify: check the hash of every file, however large.

    Raises:
        EngineNotFoundError: there is no such directory.
        EngineIncompleteError: the manifest or a listed file is missing.
        EngineMismatchError: schema, tensors, a size or a hash differ.
    """
    manifest = read_manifest(directory)
    check_engine(directory, manifest, every_hash=verify)
    return manifest


def read_manifest(directory: str | Path) -> Manifest:
    """Reads and validates ``manifest.json``; looks at no other file.

    Raises:
        EngineNotFoundError: there is no such directory.
        EngineIncompleteError: it holds no manifest.
        EngineMismatchError: the manifest is damaged or has another schema.
        EngineError: the file system refuses to read it.
    """
    directory = Path(directory)
    try:
        text = (directory / MANIFEST_FILE).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _absent(directory) from error
    except OSError as error:
        raise EngineError(f"engine {directory}: {MANIFEST_FILE} cannot be read: {error.strerror}") from error
    try:
        data = codec.parse(text)
    except ValueError as error:
        raise EngineMismatchError(
            f"engine {directory}: {MANIFEST_FILE} is damaged ({error}); {_rebuild(directory)}"
        ) from error
    try:
        return _from_data(data)
    except EngineMismatchError as error:
        command = data.get("build_command") if isinstance(data, dict) else None
        raise EngineMismatchError(f"engine {directory}: {error}; {_rebuild(directory, command)}") from error


def write_manifest(directory: str | Path, manifest: Manifest) -> None:
    """Writes ``manifest.json`` under a temporary name and renames it. Write it last.

    Raises:
        EngineError: the manifest could not be read back as the same, or the file system refuses it.
    """
    text = codec.dump(manifest)
    if _from_data(codec.parse(text)) != manifest:
        raise EngineError("the manifest does not survive JSON: use lists, not tuples, in its plain parts")
    target = Path(directory) / MANIFEST_FILE
    temporary = target.with_name(f".{MANIFEST_FILE}.{os.urandom(4).hex()}")
    try:
        temporary.write_text(text, encoding="ascii", newline="\n")
        temporary.replace(target)
    except OSError as error:
        raise EngineError(f"cannot write {target}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def check_engine(directory: str | Path, manifest: Manifest, every_hash: bool = False) -> None:
    """Checks the directory's files and the manifest's networks, and lists every difference in one error.

    Args:
        directory: the engine directory.
        manifest: what it should hold.
        every_hash: hash every file, not only those up to HASH_ON_OPEN bytes.

    Raises:
        EngineIncompleteError: a file or a network is missing.
        EngineMismatchError: a size, a hash or a tensor differs.
    """
    directory = Path(directory)
    missing = [f"network {name} is missing" for name in NETWORKS if name not in manifest.networks]
    differing = _check_tensors(manifest)
    for record in dict.fromkeys(manifest.files()):
        try:
            problem = _check_content(directory / record.file, record, every_hash)
        except (FileNotFoundError, NotADirectoryError):
            missing.append(f"{record.file} is missing, expected {record.bytes} bytes")
        except OSError as error:
            differing.append(f"{record.file} cannot be read: {error.strerror}")
        else:
            differing.extend(problem)
    if missing or differing:
        kind = EngineIncompleteError if missing else EngineMismatchError
        raise kind(
            f"engine {directory} does not match its manifest: {'; '.join(missing + differing)}; "
            f"{_rebuild(directory, manifest.build_command)}"
        )


def file_sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as stream:
        chunk = memoryview(bytearray(_CHUNK))
        while count := stream.readinto(chunk):
            digest.update(chunk[:count])
    return digest.hexdigest()


def _from_data(data: object) -> Manifest:
    schema = data.get("schema") if isinstance(data, dict) else None
    if type(schema) is int and schema > SCHEMA:
        raise EngineMismatchError(
            f"{MANIFEST_FILE} has schema {schema}, newer than the schema {SCHEMA} of g4seg-trt {VERSION}: "
            "pip install --upgrade g4seg-trt"
        )
    if isinstance(data, dict) and schema != SCHEMA:
        raise EngineMismatchError(f"{MANIFEST_FILE} has schema {schema!r}, expected {SCHEMA}")
    return codec.from_json(Manifest, data, MANIFEST_FILE)


def _check_tensors(manifest: Manifest) -> list[str]:
    """What differs between the tensors that the engine was exported with and those that this version uses."""
    problems: list[str] = []
    for name, spec in network_specs(manifest.dims, io_dtype=manifest.io_dtype).items():
        record = manifest.networks.get(name)
        if record is None:
            continue
        pairs = (("inputs", spec.inputs, record.inputs), ("outputs", spec.outputs, record.outputs))
        problems.extend(
            f"{name} {side}: expected {_show_tensors(expected)}, found {_show_tensors(found)}"
            for side, expected, found in pairs
            if expected != found
        )
    return problems


def _check_content(path: Path, record: FileRecord, every_hash: bool) -> list[str]:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        return [f"{record.file} is not a file"]
    if status.st_size != record.bytes:
        return [f"{record.file}: expected {record.bytes} bytes, found {status.st_size}"]
    if every_hash or record.bytes <= HASH_ON_OPEN:
        found = file_sha256(path)
        if found != record.sha256:
            return [f"{record.file}: expected sha256 {record.sha256}, found {found}"]
    return []


def _absent(directory: Path) -> EngineError:
    if directory.is_dir():
        return EngineIncompleteError(
            f"engine {directory} is half-built or no engine: it has no {MANIFEST_FILE}; {_rebuild(directory)}"
        )
    problem = "is a file, not a directory" if os.path.lexists(directory) else "does not exist"
    return EngineNotFoundError(f"engine {directory} {problem}; {_rebuild(directory)}")


def _show_tensors(tensors: tuple[TensorSpec, ...]) -> str:
    return ", ".join(tensor.describe() for tensor in tensors)


def _rebuild(directory: Path, command: object = None) -> str:
    if not isinstance(command, str) or not command.isprintable() or not command.strip():
        command = f"g4seg-build-engines --model MODEL --output {directory}"
    return f"build it again with: {command}"
