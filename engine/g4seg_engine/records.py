"""The parts of manifest.json. Values are checked on construction; manifest.py reads and writes them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from pathlib import PurePosixPath
from typing import Any

from g4seg_engine.codec import OPTIONAL
from g4seg_engine.errors import EngineError
from g4seg_engine.spec import NETWORKS, PRECISIONS, ModelDims, NetworkSpec, TensorSpec, network_specs
from g4seg_engine.version import VERSION

MANIFEST_FILE = "manifest.json"

SCHEMA = 1
"""Raised by one whenever a reader of the older schema would misunderstand the file."""

PREDICTION_TYPES = ("epsilon", "v_prediction")
INJECTION_MODES = ("eq5",)
INJECTION_FORMS = ("folded", "dense")
ATTENTIONS = ("products", "operator")


def utc_now() -> str:
    """The time as the manifest writes it: ISO 8601, UTC, whole seconds."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


@dataclass(frozen=True)
class FileRecord:
    """One file of the engine directory.

    Attributes:
        file: path inside the directory, with forward slashes.
        sha256: 64 lower-case hexadecimal digits.
        bytes: size.
    """

    file: str
    sha256: str
    bytes: int

    def __post_init__(self) -> None:
        _check_file(self.file)
        _check_hash(self.file, self.sha256)
        if self.bytes < 0:
            raise EngineError(f"{self.file}: {self.bytes} bytes, expected 0 or more")


@dataclass(frozen=True)
class ModelRecord:
    """Where the weights came from.

    Attributes:
        id: hub id, folder name, or ``random:ARCHITECTURE``.
        revision: commit of a hub id, else "".
        licence: licence of the weights.
        weights: sha256 of each weight file by its name; empty for random weights.
    """

    id: str
    revision: str
    licence: str
    weights: Mapping[str, str]

    def __post_init__(self) -> None:
        for file, sha256 in self.weights.items():
            _check_hash(file, sha256)


@dataclass(frozen=True)
class InjectionRecord:
    """How the mask enters attention.

    Attributes:
        mode: the formula.
        form: how the graph writes the mask's part.
        attention: how the graph writes the rest: two matrix products around a softmax, or ONNX's operator.
    """

    mode: str
    form: str
    attention: str = "products"

    def __post_init__(self) -> None:
        _check_choice("injection mode", self.mode, INJECTION_MODES)
        _check_choice("injection form", self.form, INJECTION_FORMS)
        _check_choice("attention", self.attention, ATTENTIONS)


@dataclass(frozen=True)
class ImageEncoderRecord:
    """Which image encoder gives the features, and how its last layer gives them per position."""

    id: str
    dense_mode: str


@dataclass(frozen=True)
class AutoencoderRecord:
    """Which autoencoders took the place of the model's own.

    Attributes:
        encoder: hub id with its commit, folder name, or ``random:ARCHITECTURE``; "" for the model's own.
        decoder: likewise.
    """

    encoder: str = ""
    decoder: str = ""


@dataclass(frozen=True)
class TokenizerRecord:
    """The tokenizer file and the special token ids of the text encoder."""

    file: str
    sha256: str
    bytes: int
    bos: int
    eos: int
    pad: int

    def __post_init__(self) -> None:
        FileRecord(self.file, self.sha256, self.bytes)

    @property
    def record(self) -> FileRecord:
        """The file alone."""
        return FileRecord(self.file, self.sha256, self.bytes)


@dataclass(frozen=True)
class NetworkRecord:
    """One exported network.

    Attributes:
        files: the graph first, then its external data.
        opset: ONNX opset of the graph.
        precision: what the graph computes in, one of PRECISIONS.
        inputs: in graph order.
        outputs: in graph order.
        min_batch: smallest batch in one run.
        max_batch: largest batch in one run.
        parity: figures of the comparison with torch, plain JSON; with "compared": "module" where the graph itself
            was not run (bfloat16, which no runtime on a CPU executes).
    """

    files: tuple[FileRecord, ...]
    opset: int
    precision: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    min_batch: int
    max_batch: int
    parity: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not self.files:
            raise EngineError("no files, expected the graph")
        _check_choice("precision", self.precision, PRECISIONS)


@dataclass(frozen=True)
class ArtefactRecord:
    """What a backend compiled from a network, and the machine it is valid on.

    Attributes:
        network: one of NETWORKS.
        backend: "tensorrt".
        files: the compiled files.
        backend_version: version of the compiler.
        device: name of the GPU or CPU.
        compute_capability: of the GPU, else "".
        driver: version of the GPU driver, else "".
        batch_sizes: what it was compiled for.
        build_flags: plain JSON.
    """

    network: str
    backend: str
    files: tuple[FileRecord, ...]
    backend_version: str
    device: str
    compute_capability: str
    driver: str
    batch_sizes: tuple[int, ...]
    build_flags: Mapping[str, Any]

    def __post_init__(self) -> None:
        _check_choice("network", self.network, NETWORKS)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything a runtime needs to know about an engine directory.

    Attributes:
        model: where the weights came from.
        prediction_type: "epsilon" or "v_prediction".
        vae_scaling_factor: of the model's own autoencoder, already inside the graphs; kept as a fact.
        dims: the sizes from which all tensor shapes follow.
        injection: how the mask enters attention.
        image_encoder: where the features come from.
        tokenizer: file and special ids.
        networks: by name, see NETWORKS.
        build_command: the exact command that builds this directory again.
        autoencoder: what replaces the model's own; not in the file where nothing does.
        recommended: refine settings for this engine, plain JSON, not read here.
        note: a line to print on use, or "".
        artefacts: compiled files by backend.
        schema: version of this layout.
        package_version: version of g4seg-trt that wrote it.
        created: ISO 8601, UTC.
    """

    model: ModelRecord
    prediction_type: str
    vae_scaling_factor: float
    dims: ModelDims
    injection: InjectionRecord
    image_encoder: ImageEncoderRecord
    tokenizer: TokenizerRecord
    networks: Mapping[str, NetworkRecord]
    build_command: str
    autoencoder: AutoencoderRecord = field(default=AutoencoderRecord(), metadata=OPTIONAL)
    recommended: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    artefacts: tuple[ArtefactRecord, ...] = ()
    schema: int = SCHEMA
    package_version: str = VERSION
    created: str = field(default_factory=utc_now)

    def __post_init__(self) -> None:
        _check_choice("prediction_type", self.prediction_type, PREDICTION_TYPES)
        if not self.build_command.strip():
            raise EngineError("build_command is empty, expected the command that builds this engine")
        for name in self.networks:
            _check_choice("network", name, NETWORKS)
        try:
            offset = datetime.fromisoformat(self.created).utcoffset()
        except ValueError as error:
            raise EngineError(f"created is {self.created!r}, expected an ISO 8601 time") from error
        if offset != timedelta(0):
            raise EngineError(f"created is {self.created!r}, expected a time in UTC such as {utc_now()}")

    @property
    def io_dtype(self) -> str:
        """The dtype of the float inputs and outputs, one of IO_DTYPES; the networks of an engine share it."""
        tensors = (tensor for record in self.networks.values() for tensor in (*record.inputs, *record.outputs))
        return "float16" if any(tensor.dtype == "float16" for tensor in tensors) else "float32"

    def files(self) -> tuple[FileRecord, ...]:
        """Every file of the engine but the manifest itself: tokenizer, networks, artefacts."""
        files = [self.tokenizer.record]
        for name in NETWORKS:
            if name in self.networks:
                files.extend(self.networks[name].files)
        for artefact in self.artefacts:
            files.extend(artefact.files)
        return tuple(files)

    def spec(self, network: str) -> NetworkSpec:
        """The spec of a network of this engine, with the batch range it was exported for.

        Raises:
            EngineError: the engine has no such network.
        """
        record = self.networks.get(network)
        if record is None:
            raise EngineError(f"unknown network {network!r}: this engine has {', '.join(self.networks)}")
        spec = network_specs(self.dims, precision=record.precision, io_dtype=self.io_dtype)[network]
        return replace(spec, min_batch=record.min_batch, max_batch=record.max_batch)


def _check_choice(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise EngineError(f"{what} is {value!r}, expected {' or '.join(allowed)}")


def _check_hash(file: str, sha256: str) -> None:
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise EngineError(f"{file}: sha256 is {sha256[:80]!r}, expected 64 lower-case hexadecimal digits")


def _check_file(file: str) -> None:
    # A manifest may come from anywhere: its files must lie inside the directory, on every platform.
    path = PurePosixPath(file)
    plain = str(path) == file != "." and not path.is_absolute() and ".." not in path.parts
    if not plain or re.search(r"[\\:]", file):
        raise EngineError(f"file {file!r} is not a plain path inside the engine directory")
    if file == MANIFEST_FILE:
        raise EngineError(f"file {file!r} cannot be a part of the engine it describes")
