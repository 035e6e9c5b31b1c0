"""What an engine directory holds, and whether it can be used here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from g4seg_engine.cache import cache_bytes
from g4seg_engine.codec import to_json
from g4seg_engine.errors import EngineError
from g4seg_engine.manifest import check_engine, read_manifest
from g4seg_engine.records import FileRecord, Manifest
from g4seg_trt.diagnosis.fit import Fit, artefact_fit
from g4seg_trt.diagnosis.gpu import Gpus, read_gpus
from g4seg_trt.diagnosis.packages import package_versions


@dataclass(frozen=True)
class Inspection:
    """What was found in an engine directory.

    Attributes:
        manifest: what it says about itself, or None if that cannot be read.
        fits: whether each of the manifest's artefacts runs here, in their order.
        found: file -> bytes of what lies in the directory itself; empty if it cannot be read.
        verified: whether every hash was asked for, not only those of files up to 64 MB.
        cache: bytes of what backends keep there for their next start, by backend.
        problem: the error of opening the directory, which ends with the command that builds it again; or None.
    """

    manifest: Manifest | None
    fits: tuple[Fit, ...]
    found: Mapping[str, int]
    verified: bool
    cache: Mapping[str, int]
    problem: EngineError | None

    def to_mapping(self) -> dict[str, Any]:
        """The inspection as plain JSON; "contents" is null if the manifest cannot be read."""
        return {
            "verified": self.verified,
            "problem": None if self.problem is None else str(self.problem),
            "found": dict(self.found),
            "cache": dict(self.cache),
            "contents": None if self.manifest is None else _contents(self.manifest, self.fits),
        }


def inspect_engine(directory: Path, *, verify: bool = False) -> Inspection:
    """Read the manifest, check the directory against it, and compare its artefacts with this machine.

    Args:
        directory: the engine directory; whatever is wrong with it is in the result.
        verify: check the hash of every file.
    """
    found = _found(directory)
    try:
        manifest = read_manifest(directory)
    except EngineError as error:
        return Inspection(None, (), found, verify, {}, error)
    problem = None
    try:
        check_engine(directory, manifest, every_hash=verify)
    except EngineError as error:
        problem = error
    gpus, versions = (read_gpus(), package_versions()) if manifest.artefacts else (Gpus(), {})
    fits = tuple(artefact_fit(manifest, artefact, gpus, versions) for artefact in manifest.artefacts)
    return Inspection(manifest, fits, found, verify, cache_bytes(directory), problem)


def total_bytes(files: Iterable[FileRecord]) -> int:
    """The size of files together, each counted once."""
    return sum(record.bytes for record in dict.fromkeys(files))


def _found(directory: Path) -> dict[str, int]:
    try:
        return {path.name: path.stat().st_size for path in sorted(directory.iterdir()) if path.is_file()}
    except OSError:
        return {}  # reading the manifest says why


def _contents(manifest: Manifest, fits: tuple[Fit, ...]) -> dict[str, Any]:
    # The manifest's own words, without hashes and tensors: these are in the file itself.
    networks = {
        name: {
            "files": _files(network.files),
            "bytes": total_bytes(network.files),
            "precision": network.precision,
            "opset": network.opset,
            "min_batch": network.min_batch,
            "max_batch": network.max_batch,
            "parity": to_json(network.parity),
        }
        for name, network in manifest.networks.items()
    }
    artefacts = [
        {
            **to_json(artefact),
            "files": _files(artefact.files),
            "bytes": total_bytes(artefact.files),
            "fits": fit.fits,
            **asdict(fit),
        }
        for artefact, fit in zip(manifest.artefacts, fits, strict=True)
    ]
    return {
        "schema": manifest.schema,
        "package_version": manifest.package_version,
        "created": manifest.created,
        "model": {
            "id": manifest.model.id,
            "revision": manifest.model.revision,
            "licence": manifest.model.licence,
        },
        "prediction_type": manifest.prediction_type,
        "dims": to_json(manifest.dims),
        "io_dtype": manifest.io_dtype,
        "injection": to_json(manifest.injection),
        "image_encoder": to_json(manifest.image_encoder),
        "autoencoder": to_json(manifest.autoencoder),
        "networks": networks,
        "recommended": to_json(manifest.recommended),
        "artefacts": artefacts,
        "bytes": total_bytes(manifest.files()),
        "build_command": manifest.build_command,
        "note": manifest.note,
    }


def _files(files: tuple[FileRecord, ...]) -> list[dict[str, Any]]:
    return [{"file": record.file, "bytes": record.bytes} for record in files]
