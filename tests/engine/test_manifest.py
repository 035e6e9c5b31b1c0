from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from g4seg_engine import codec
from g4seg_engine.errors import EngineError, EngineMismatchError
from g4seg_engine.manifest import (
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
    load_engine,
    read_manifest,
    write_manifest,
)
from g4seg_engine.spec import IO_DTYPES, NETWORKS, PRECISIONS, ModelDims, network_specs

pytestmark = pytest.mark.filterwarnings("error")

# Any text that a terminal can be trusted with, half of a surrogate pair (an undecodable path) included.
texts = st.text(st.characters(exclude_categories=["Cc"]), max_size=12)
sizes = st.integers(0, 2**40)
counts = st.integers(1, 9)
hashes = st.text("0123456789abcdef", min_size=64, max_size=64)
names = st.from_regex(r"[a-z]{1,6}(/[a-z]{1,4})?\.(onnx|data)", fullmatch=True)
numbers = st.floats(allow_nan=False, allow_infinity=False)
plain = st.dictionaries(
    texts,
    st.recursive(
        st.none() | st.booleans() | st.integers() | numbers | texts,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
        max_leaves=6,
    ),
    max_size=3,
)
files = st.builds(FileRecord, names, hashes, sizes)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    factor = draw(counts)
    rest = [draw(counts) for _ in range(5)]
    io_dtype = draw(st.sampled_from(IO_DTYPES))
    dims = ModelDims(factor * draw(counts), factor, *rest)
    networks = {
        name: NetworkRecord(
            files=tuple(draw(st.lists(files, min_size=1, max_size=2))),
            opset=draw(counts),
            precision=draw(st.sampled_from(PRECISIONS)),
            inputs=spec.inputs,
            outputs=spec.outputs,
            min_batch=spec.min_batch,
            max_batch=spec.max_batch,
            parity=draw(plain),
        )
        for name, spec in network_specs(dims, io_dtype=io_dtype).items()
    }
    artefacts = st.builds(
        ArtefactRecord,
        network=st.sampled_from(NETWORKS),
        files=st.lists(files, max_size=2).map(tuple),
        backend=texts,
        backend_version=texts,
        device=texts,
        compute_capability=texts,
        driver=texts,
        batch_sizes=st.lists(counts, max_size=2).map(tuple),
        build_flags=plain,
    )
    return Manifest(
        model=ModelRecord(draw(texts), draw(texts), draw(texts), draw(st.dictionaries(texts, hashes, max_size=2))),
        prediction_type=draw(st.sampled_from(["epsilon", "v_prediction"])),
        vae_scaling_factor=draw(numbers),
        dims=dims,
        injection=InjectionRecord(
            "eq5", draw(st.sampled_from(["folded", "dense"])), draw(st.sampled_from(["products", "operator"]))
        ),
        image_encoder=ImageEncoderRecord(draw(texts), draw(texts)),
        tokenizer=TokenizerRecord(draw(names), draw(hashes), draw(sizes), *(draw(sizes) for _ in range(3))),
        networks=networks,
        build_command=draw(texts.filter(str.strip)),
        autoencoder=AutoencoderRecord(draw(texts), draw(texts)),
        recommended=draw(plain),
        note=draw(texts),
        artefacts=tuple(draw(st.lists(artefacts, max_size=2))),
    )


@settings(deadline=None, max_examples=40)
@given(manifest=manifests())
def test_a_manifest_survives_writing_and_reading(manifest: Manifest) -> None:
    with tempfile.TemporaryDirectory() as name:
        write_manifest(name, manifest)
        assert [path.name for path in Path(name).iterdir()] == [MANIFEST_FILE]
        first = (Path(name) / MANIFEST_FILE).read_bytes()
        assert read_manifest(name) == manifest
        write_manifest(name, read_manifest(name))
        assert (Path(name) / MANIFEST_FILE).read_bytes() == first


def test_the_autoencoder_is_in_the_file_only_where_it_is_not_the_models_own(engine: Path) -> None:
    """So that engines from before it could be replaced stay readable, byte for byte."""
    manifest = read_manifest(engine)
    assert manifest.autoencoder == AutoencoderRecord("", "")
    before = (engine / MANIFEST_FILE).read_bytes()
    assert b"autoencoder" not in before
    write_manifest(engine, manifest)
    assert (engine / MANIFEST_FILE).read_bytes() == before
    write_manifest(engine, replace(manifest, autoencoder=AutoencoderRecord(decoder="owner/taesd@0123")))
    data = json.loads((engine / MANIFEST_FILE).read_text())
    assert data["autoencoder"] == {"encoder": "", "decoder": "owner/taesd@0123"}
    assert read_manifest(engine).autoencoder.decoder == "owner/taesd@0123"


def test_the_file_is_sorted_ascii(engine: Path) -> None:
    write_manifest(engine, replace(read_manifest(engine), note="für Übungen"))
    text = (engine / MANIFEST_FILE).read_bytes().decode("ascii")
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every value of a JSON document, but not into the parts that may hold any JSON."""
    children = enumerate(value) if isinstance(value, list) else value.items() if isinstance(value, dict) else ()
    for key, child in children:
        here = (*path, key)
        yield here
        if key not in ("recommended", "parity", "build_flags"):
            yield from _places(child, here)


def _document(engine: Path) -> tuple[Any, list[tuple[Any, ...]]]:
    data = json.loads((engine / MANIFEST_FILE).read_text())
    return data, list(_places(data))


def _replaced(data: Any, place: tuple[Any, ...], value: Any) -> Any:
    copy = json.loads(json.dumps(data))
    target = copy
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value
    return copy


def test_every_value_of_a_wrong_type_is_refused(engine: Path) -> None:
    data, places = _document(engine)
    assert len(places) > 200
    for place in places:
        # No field is null, and no field that holds any JSON may itself be anything but an object.
        (engine / MANIFEST_FILE).write_text(json.dumps(_replaced(data, place, None)))
        with pytest.raises(EngineMismatchError) as caught:
            read_manifest(engine)
        message = str(caught.value)
        assert "--output engines/mine" in message or place == ("build_command",)
        assert "\n" not in message


def test_every_missing_key_is_named(engine: Path) -> None:
    data, places = _document(engine)
    free = ("networks", "weights")
    for place in places:
        if not isinstance(place[-1], str) or (len(place) > 1 and place[-2] in free):
            continue
        copy = json.loads(json.dumps(data))
        target = copy
        for key in place[:-1]:
            target = target[key]
        del target[place[-1]]
        (engine / MANIFEST_FILE).write_text(json.dumps(copy))
        with pytest.raises(EngineMismatchError, match=place[-1]):
            read_manifest(engine)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("surprise",), 1, "manifest.json: 'surprise' is unknown"),
        (("dims", "square"), 64.5, "manifest.json.dims.square is 64.5"),
        (("dims", "square"), True, "manifest.json.dims.square is True"),
        (("dims", "square"), 66, "not a multiple"),
        (("prediction_type",), "sample", "epsilon or v_prediction"),
        (("autoencoder",), {"encoder": "taesd"}, "autoencoder: decoder is missing"),
        (("autoencoder",), "taesd", "autoencoder is 'taesd', expected an object"),
        (("injection", "form"), "loose", "folded or dense"),
        (("injection", "attention"), "fused", "products or operator"),
        (("networks", "unet", "files"), [], "expected the graph"),
        (("networks", "controlnet"), {}, "controlnet"),
        (("networks", "unet", "inputs", 0, "shape", 0), "N", "axis 'N'"),
        (("networks", "unet", "inputs", 0, "shape", 0), 1.0, r"shape\[0\] is 1.0, expected int or str"),
        (("networks", "unet", "files", 0, "sha256"), "A" * 64, "sha256"),
        (("networks", "unet", "files", 0, "bytes"), -1, "-1 bytes"),
        (("model", "weights", "unet.safetensors"), "beef", "sha256 is 'beef'"),
        (("created",), "yesterday", "ISO 8601"),
        (("created",), "2026-01-01T00:00:00+02:00", "UTC"),
        (("created",), "2026-01-01T00:00:00", "UTC"),
        (("build_command",), "  ", "build_command is empty"),
        (("note",), "\x1b[2J", "control characters"),
        (("recommended", "note"), "a\nb", "control characters"),
        (("recommended", "a\nb"), 1, "control characters"),
        (("schema",), 0, "schema 0, expected 1"),
        (("schema",), "1", "schema '1', expected 1"),
        (("schema",), True, "schema is True"),
    ],
)
def test_wrong_values_are_refused(engine: Path, place: tuple[Any, ...], value: Any, message: str) -> None:
    data, _ = _document(engine)
    (engine / MANIFEST_FILE).write_text(json.dumps(_replaced(data, place, value)))
    with pytest.raises(EngineMismatchError, match=message):
        read_manifest(engine)


@pytest.mark.parametrize(
    "file",
    [
        "/etc/passwd",
        "../unet.onnx",
        "a/../../b",
        "a\\b",
        "C:unet.onnx",
        ".",
        "",
        "a//b",
        "./a",
        "manifest.json",
    ],
)
def test_files_outside_the_directory_are_refused(engine: Path, file: str) -> None:
    data, _ = _document(engine)
    (engine / MANIFEST_FILE).write_text(json.dumps(_replaced(data, ("tokenizer", "file"), file)))
    with pytest.raises(EngineMismatchError, match="tokenizer: file"):
        read_manifest(engine)


def test_a_newer_schema_says_so_whatever_else_changed(engine: Path) -> None:
    data, _ = _document(engine)
    newer = {"schema": SCHEMA + 1, "build_command": data["build_command"], "something": "else"}
    (engine / MANIFEST_FILE).write_text(json.dumps(newer))
    with pytest.raises(EngineMismatchError) as caught:
        read_manifest(engine)
    message = str(caught.value)
    assert "schema 2, newer than the schema 1" in message
    assert "pip install --upgrade g4seg-trt" in message
    assert message.endswith(data["build_command"])


def test_a_command_that_could_mislead_a_terminal_is_not_printed(engine: Path) -> None:
    (engine / MANIFEST_FILE).write_text(json.dumps({"schema": 9, "build_command": "ls\x1b[2Krm"}))
    with pytest.raises(EngineMismatchError) as caught:
        read_manifest(engine)
    assert "\x1b" not in str(caught.value)
    assert str(caught.value).endswith(f"g4seg-build-engines --model MODEL --output {engine}")


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_truncated_manifest_is_damaged(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory, fill_engine: Callable[[Path], Manifest]
) -> None:
    engine = tmp_path_factory.mktemp("truncated")
    fill_engine(engine)
    whole = (engine / MANIFEST_FILE).read_bytes()
    # Without its last newline the file still says everything.
    (engine / MANIFEST_FILE).write_bytes(whole[: data.draw(st.integers(0, len(whole) - 2))])
    with pytest.raises(EngineMismatchError, match=r"manifest\.json is damaged"):
        read_manifest(engine)


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"[" * 100_000, b'{"schema": NaN}', b'{"schema": -Infinity}', b"9" * 5000]
)
def test_what_is_not_json_is_damaged(engine: Path, content: bytes) -> None:
    (engine / MANIFEST_FILE).write_bytes(content)
    with pytest.raises(EngineMismatchError, match=r"manifest\.json is damaged"):
        read_manifest(engine)


@pytest.mark.parametrize("content", [b"[]", b'"text"', b"null", b"1"])
def test_json_that_is_no_object_is_refused(engine: Path, content: bytes) -> None:
    (engine / MANIFEST_FILE).write_bytes(content)
    with pytest.raises(EngineMismatchError, match="expected an object"):
        read_manifest(engine)


def test_numbers_beyond_float_are_refused(engine: Path) -> None:
    text = (engine / MANIFEST_FILE).read_text().replace("0.18215", "1e999")
    (engine / MANIFEST_FILE).write_text(text)
    with pytest.raises(EngineMismatchError, match="vae_scaling_factor is inf, expected a finite number"):
        read_manifest(engine)


def test_a_whole_number_is_a_float_too(engine: Path) -> None:
    text = (engine / MANIFEST_FILE).read_text().replace("0.18215", "2")
    (engine / MANIFEST_FILE).write_text(text)
    factor = read_manifest(engine).vae_scaling_factor
    assert factor == 2.0
    assert type(factor) is float


@pytest.mark.parametrize(
    ("recommended", "message"),
    [
        ({"certainty_filter": (0.2, 0.6)}, "lists, not tuples"),
        ({"beta": float("nan")}, "cannot be written as JSON"),
        ({"beta": {1, 2}}, "cannot be written as JSON"),
        ({"note": "a\nb"}, "control characters"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(engine: Path, recommended: Any, message: str) -> None:
    before = (engine / MANIFEST_FILE).read_bytes()
    manifest = replace(read_manifest(engine), recommended=recommended)
    with pytest.raises(EngineError, match=message):
        write_manifest(engine, manifest)
    assert (engine / MANIFEST_FILE).read_bytes() == before


def test_writing_into_a_missing_folder_is_one_line(engine: Path) -> None:
    with pytest.raises(EngineError, match=r"cannot write .*manifest\.json: No such file"):
        write_manifest(engine / "nowhere", read_manifest(engine))


def test_spec_of_a_network_has_the_exported_batch_range(engine: Path) -> None:
    manifest = read_manifest(engine)
    unet = replace(manifest.networks["unet"], max_batch=3)
    manifest = replace(manifest, networks={**manifest.networks, "unet": unet})
    assert manifest.spec("unet") == replace(network_specs(manifest.dims)["unet"], max_batch=3)
    with pytest.raises(EngineError, match="unknown network 'vae': this engine has"):
        manifest.spec("vae")


def test_half_inputs_and_outputs_belong_to_the_whole_engine(engine: Path) -> None:
    manifest = read_manifest(engine)
    assert manifest.io_dtype == "float32"
    networks = {
        name: replace(manifest.networks[name], inputs=spec.inputs, outputs=spec.outputs)
        for name, spec in network_specs(manifest.dims, io_dtype="float16").items()
    }
    half = replace(manifest, networks=networks)
    write_manifest(engine, half)
    assert load_engine(engine).io_dtype == "float16"
    assert half.spec("unet") == network_specs(manifest.dims, io_dtype="float16")["unet"]
    write_manifest(engine, replace(manifest, networks={**manifest.networks, "unet": networks["unet"]}))
    with pytest.raises(EngineMismatchError, match="vae_decoder inputs: expected latent float16"):
        load_engine(engine)


def test_the_spec_has_the_tolerance_of_the_precision(engine: Path) -> None:
    manifest = read_manifest(engine)
    unet = replace(manifest.networks["unet"], precision="fp16")
    spec = replace(manifest, networks={**manifest.networks, "unet": unet}).spec("unet")
    assert spec == network_specs(manifest.dims, precision="fp16")["unet"]
    with pytest.raises(EngineError, match="precision is 'half', expected fp32 or fp16 or bf16"):
        replace(unet, precision="half")


def test_deep_nesting_is_an_error_not_a_crash() -> None:
    nested: Any = 1
    for _ in range(5000):
        nested = [nested]
    artefact = ArtefactRecord("unet", "", (), "", "", "", "", (), {})
    data = codec.to_json(artefact) | {"build_flags": {"deep": nested}}
    with pytest.raises(EngineMismatchError, match="too deeply nested"):
        codec.from_json(ArtefactRecord, data, "x")
