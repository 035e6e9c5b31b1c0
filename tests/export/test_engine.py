"""A local model to an engine directory, and everything that must leave nothing behind."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from g4seg_engine.errors import EngineError, MissingExtraError
from g4seg_engine.manifest import InjectionRecord, Manifest, load_engine
from g4seg_engine.spec import NETWORKS
from g4seg_export.engine import export_engine
from g4seg_export.errors import ExportError, ParityError, SourceError
from g4seg_export.networks import TextEncoder


def test_a_local_model_becomes_a_complete_engine(engine: tuple[Path, Manifest], half_folder: Path) -> None:
    directory, written = engine
    manifest = load_engine(directory, verify=True)
    assert manifest == written
    assert sorted(path.name for path in directory.iterdir()) == sorted(
        [*(f"{name}.onnx" for name in NETWORKS), "manifest.json", "tokenizer.json"]
    )
    assert (manifest.model.id, manifest.model.licence) == ("half", "Apache-2.0")
    assert len(manifest.model.weights) == 4
    assert manifest.prediction_type == "v_prediction"
    assert manifest.injection == InjectionRecord("eq5", "folded", "products")
    assert (manifest.image_encoder.id, manifest.image_encoder.dense_mode) == ("half/image_encoder", "csa")
    assert (manifest.tokenizer.bos, manifest.tokenizer.eos, manifest.tokenizer.pad) == (256, 257, 0)
    assert manifest.recommended == {"timestep": 200, "beta": 0.5}
    assert manifest.note == "a test model"
    assert (directory / "tokenizer.json").read_bytes() == (half_folder / "tokenizer.json").read_bytes()
    assert manifest.build_command == (f"g4seg-build-engines --model {half_folder} --output {directory} --overwrite")


def test_recommended_settings_are_checked_before_anything_is_exported(
    half_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("g4seg_export.engine._export_one", lambda *_: pytest.fail("exported"))

    def check(settings: Mapping[str, Any]) -> None:
        assert settings == {"timestep": 200, "beta": 0.5}
        raise SourceError("not these")

    with pytest.raises(SourceError, match="not these"):
        export_engine(str(half_folder), tmp_path / "out", progress=False, check_recommended=check)
    assert not list(tmp_path.iterdir())


def test_parity_figures_are_in_the_manifest(engine: tuple[Path, Manifest]) -> None:
    for name, network in engine[1].networks.items():
        assert network.parity["relative"] < 1e-5, name
        assert network.parity["batches"] == ([1] if name == "vae_encoder" else [1, 2])
        assert network.precision == "fp32"


def test_every_graph_runs_at_a_batch_it_was_not_traced_with(engine: tuple[Path, Manifest]) -> None:
    directory, manifest = engine
    generator = np.random.default_rng(0)
    for name in ("text_encoder", "vae_decoder", "image_encoder"):
        session = ort.InferenceSession(str(directory / f"{name}.onnx"), providers=["CPUExecutionProvider"])
        spec = manifest.networks[name].inputs[0]
        shape = [3 if size == "B" else int(size) for size in spec.shape]
        array = generator.random(shape).astype(spec.dtype)
        batch = session.run(None, {spec.name: array})[0]
        single = session.run(None, {spec.name: array[2:]})[0]
        np.testing.assert_allclose(batch[2:], single, atol=1e-5)


def test_half_sources_make_half_engines(engine: tuple[Path, Manifest]) -> None:
    for name in ("text_encoder", "unet"):
        initialisers = onnx.load(engine[0] / f"{name}.onnx").graph.initializer
        # The causal mask is no weight, and its -inf fits no half.
        large = [t for t in initialisers if np.prod(t.dims) >= 1024 and tuple(t.dims[-2:]) != (77, 77)]
        assert large, name
        assert {tensor.data_type for tensor in large} == {onnx.TensorProto.FLOAT16}, name


def test_a_graph_that_differs_from_its_model_leaves_nothing_behind(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Drifting(TextEncoder):
        """Gives something else when it runs than what was exported."""

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            embedding = super().forward(input_ids)
            return embedding if torch.compiler.is_exporting() else embedding * 1.01

    monkeypatch.setattr("g4seg_export.networks.TextEncoder", Drifting)
    with pytest.raises(ParityError, match=r"text_encoder: .*output text_embedding at batch 1.*at batch 2"):
        export_engine(str(model_folder), tmp_path / "engine", progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"form": "sparse"}, ExportError, "unknown form 'sparse': allowed are folded, dense"),
        ({"attention": "fused"}, ExportError, "unknown attention 'fused': allowed are products, operator"),
        ({"dense_mode": "first"}, ExportError, "unknown dense mode 'first': allowed are last, maskclip, csa"),
        ({"image_encoder": "no encoder"}, SourceError, "no image encoder 'no encoder'"),
        ({"revision": "main"}, SourceError, "belongs to hub models"),
    ],
)
def test_wrong_options_give_one_line_and_no_engine(
    options: dict[str, Any], error: type[Exception], message: str, model_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message) as caught:
        export_engine(str(model_folder), tmp_path / "engine", progress=False, **options)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_engine_is_not_replaced_unasked(
    engine: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(*_: object, **__: object) -> None:
        pytest.fail("the model was fetched although there is no place for its engine")

    monkeypatch.setattr("g4seg_export.sources.load_source", fetch)
    with pytest.raises(EngineError, match="exists"):
        export_engine("owner/name", engine[0], progress=False)


def test_the_build_command_of_a_hub_model_pins_its_commit(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from g4seg_export import sources

    source = replace(sources.load_source(str(model_folder)), revision="0123abc")
    monkeypatch.setattr("g4seg_export.sources.load_source", lambda *_, **__: source)
    manifest = export_engine("owner/name", tmp_path / "engine", progress=False)
    assert manifest.build_command.endswith("--overwrite --revision 0123abc")


@pytest.mark.parametrize(("package", "extra"), [("diffusers", "export"), ("onnxruntime", "cpu")])
def test_a_missing_package_names_the_extra(
    package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == package else find_spec(name, *rest)
    )
    with pytest.raises(MissingExtraError) as caught:
        export_engine("tiny", tmp_path / "engine")
    assert str(caught.value) == f"{package} is not installed: pip install 'g4seg-trt[{extra}]'"


def test_importing_the_module_loads_nothing_heavy() -> None:
    """So that a missing package is one line from export_engine, not a traceback from the import."""
    program = "import sys, g4seg_export.engine; print(*(m for m in ('torch', 'diffusers') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
