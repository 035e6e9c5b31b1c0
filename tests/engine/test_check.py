from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from g4seg_engine import manifest as manifest_module
from g4seg_engine.errors import EngineError, EngineIncompleteError, EngineMismatchError, EngineNotFoundError
from g4seg_engine.manifest import MANIFEST_FILE, Manifest, check_engine, load_engine, read_manifest
from g4seg_engine.spec import NETWORKS

COMMAND = "g4seg-build-engines --model 'my model' --output engines/mine --overwrite"
FILES = ["tokenizer.json", *(f"{name}.onnx{suffix}" for name in NETWORKS for suffix in ("", ".data"))]


def test_a_good_engine_opens(engine: Path) -> None:
    assert load_engine(engine) == load_engine(str(engine), verify=True) == read_manifest(engine)
    assert [record.file for record in load_engine(engine).files()] == FILES


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_one_changed_byte_is_found(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory, fill_engine: Callable[[Path], Manifest]
) -> None:
    engine = tmp_path_factory.mktemp("tampered")
    fill_engine(engine)
    path = engine / data.draw(st.sampled_from(FILES))
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with pytest.raises(EngineMismatchError) as caught:
        load_engine(engine)
    message = str(caught.value)
    assert f"{path.name}: expected sha256 " in message
    assert message.count("expected sha256") == 1
    assert message.endswith(f"; build it again with: {COMMAND}")
    assert "\n" not in message


@pytest.mark.parametrize("file", FILES)
def test_a_truncated_file_is_named_with_both_sizes(engine: Path, file: str) -> None:
    path = engine / file
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(EngineMismatchError, match=rf"{file}: expected {size} bytes, found {size - 1}; .*overwrite$"):
        load_engine(engine)


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_named(engine: Path, file: str) -> None:
    (engine / file).unlink()
    with pytest.raises(EngineIncompleteError, match=rf"{file} is missing, expected \d+ bytes; .*overwrite$"):
        load_engine(engine)


def test_every_difference_is_listed_at_once(engine: Path) -> None:
    (engine / "unet.onnx").unlink()
    (engine / "tokenizer.json").write_bytes(b"")
    (engine / "vae_decoder.onnx").unlink()
    (engine / "vae_decoder.onnx").mkdir()
    with pytest.raises(EngineIncompleteError) as caught:
        load_engine(engine)
    for part in (
        "unet.onnx is missing",
        "tokenizer.json: expected 18 bytes, found 0",
        "vae_decoder.onnx is not a file",
    ):
        assert part in str(caught.value)


def test_large_files_are_hashed_on_request_only(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = engine / "unet.onnx.data"
    monkeypatch.setattr(manifest_module, "HASH_ON_OPEN", path.stat().st_size - 1)
    path.write_bytes(bytes(path.stat().st_size))
    load_engine(engine)
    with pytest.raises(EngineMismatchError, match=r"unet\.onnx\.data: expected sha256"):
        load_engine(engine, verify=True)
    monkeypatch.setattr(manifest_module, "HASH_ON_OPEN", path.stat().st_size)
    with pytest.raises(EngineMismatchError, match=r"unet\.onnx\.data: expected sha256"):
        load_engine(engine)


def test_hashing_reads_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "zeros"
    path.write_bytes(bytes(2 * 2**20 + 1))
    # Known from sha256sum of 2097153 zero bytes.
    expected = "e9a099c75ef837c28bc91683bee127e463fa0ee10c11fd816f8d2d428c0d610e"
    assert manifest_module.file_sha256(path) == expected


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(EngineNotFoundError, match=r"nowhere does not exist; .*--output .*nowhere$"):
        load_engine(tmp_path / "nowhere")


def test_a_file_instead_of_a_directory(engine: Path) -> None:
    with pytest.raises(EngineNotFoundError, match=r"is a file, not a directory"):
        load_engine(engine / MANIFEST_FILE)


def test_a_directory_without_a_manifest_is_half_built(engine: Path) -> None:
    (engine / MANIFEST_FILE).unlink()
    with pytest.raises(EngineIncompleteError, match=r"half-built .* has no manifest\.json; .*--output"):
        load_engine(engine)


def test_a_manifest_that_cannot_be_read(engine: Path) -> None:
    (engine / MANIFEST_FILE).unlink()
    (engine / MANIFEST_FILE).mkdir()
    with pytest.raises(EngineError, match=r"manifest\.json cannot be read: "):
        load_engine(engine)


def test_a_missing_network_is_named(engine: Path) -> None:
    manifest = read_manifest(engine)
    networks = {name: record for name, record in manifest.networks.items() if name != "image_encoder"}
    with pytest.raises(EngineIncompleteError, match="network image_encoder is missing"):
        check_engine(engine, replace(manifest, networks=networks))


def test_tensors_of_another_version_are_shown(engine: Path) -> None:
    manifest = read_manifest(engine)
    encoder = manifest.networks["text_encoder"]
    renamed = replace(encoder, outputs=(replace(encoder.outputs[0], name="hidden"),))
    with pytest.raises(EngineMismatchError) as caught:
        check_engine(engine, replace(manifest, networks={**manifest.networks, "text_encoder": renamed}))
    expected, found = "text_embedding float32 [B, 77, 96]", "hidden float32 [B, 77, 96]"
    assert f"text_encoder outputs: expected {expected}, found {found}; " in str(caught.value)


def test_artefacts_are_checked_too(engine: Path) -> None:
    manifest = read_manifest(engine)
    plan = manifest_module.FileRecord("tensorrt/unet.b1.plan", "0" * 64, 3)
    artefact = manifest_module.ArtefactRecord("unet", "tensorrt", (plan,), "11.1", "GPU", "9.0", "580", (1,), {})
    with pytest.raises(EngineIncompleteError, match=r"tensorrt/unet\.b1\.plan is missing"):
        check_engine(engine, replace(manifest, artefacts=(artefact,)))
