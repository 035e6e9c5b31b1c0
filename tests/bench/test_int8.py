"""The trial of int8 on the embedded engine: what is quantised, on which inputs, and the figures of the command."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pytest

from g4seg_bench.int8 import main
from g4seg_bench.int8_networks import (
    INT8,
    INT8_WEIGHTS,
    NETWORKS,
    Form,
    check_precision,
    fp32_runner,
    inputs_on_scenes,
    make_forms,
    measure_forms,
    opened,
    static_model,
    weights_mb,
)
from g4seg_bench.samples import gains, on_the_grid, refine, scenes
from g4seg_engine.errors import EngineError
from g4seg_engine.manifest import Manifest, load_engine
from g4seg_engine.openvino_norms import norm_by_channel
from g4seg_engine.runner import Array, check_inputs
from g4seg_engine.spec import NETWORKS as ALL_NETWORKS
from g4seg_engine.spec import NetworkSpec
from g4seg_trt.chain import HostChain
from g4seg_trt.config import RefineConfig, resolve_config
from g4seg_trt.prompt import PromptEncoder
from g4seg_trt.refiner import Refiner, engine_directory

pytest.importorskip("openvino")

Record = Callable[..., dict[str, Any]]

TINY = engine_directory("tiny")


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return load_engine(TINY)


@pytest.fixture(scope="module")
def config(manifest: Manifest) -> RefineConfig:
    return on_the_grid(resolve_config(recommended=manifest.recommended))


class Recorded:
    """A runner that keeps what it was given."""

    def __init__(self, name: str, manifest: Manifest) -> None:
        self._runner = fp32_runner(TINY, manifest, name)
        self.spec = self._runner.spec
        self.seen: list[dict[str, Array]] = []

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.seen.append({name: array.copy() for name, array in inputs.items()})
        return self._runner.run(inputs)

    def close(self) -> None:
        self._runner.close()

    def __enter__(self) -> Recorded:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@pytest.mark.slow  # opens and compiles many networks
def test_networks_are_calibrated_on_what_the_product_feeds_them(manifest: Manifest, config: RefineConfig) -> None:
    among = list(scenes(2, 9, manifest.dims.square))
    found = inputs_on_scenes(TINY, manifest, among, config, NETWORKS)
    assert list(found) == list(NETWORKS)
    runners = {name: Recorded(name, manifest) for name in ALL_NETWORKS}
    with Refiner(HostChain(runners, manifest.dims), PromptEncoder.of_engine(TINY, manifest)) as refiner:
        for number, scene in enumerate(among):
            refine(refiner, scene, replace(config, seed=config.seed + number))
    for name in NETWORKS:
        assert len(found[name]) == len(runners[name].seen) == 2
        for ours, theirs in zip(found[name], runners[name].seen, strict=True):
            assert check_inputs(manifest.spec(name), ours) == 1
            assert set(ours) == set(theirs)
            for tensor in ours:
                np.testing.assert_array_equal(ours[tensor], theirs[tensor], err_msg=f"{name}: {tensor}")
        first, second = found[name]
        changed = {tensor for tensor in first if not np.array_equal(first[tensor], second[tensor])}
        # Two class names may well have as many tokens.
        assert changed - {"token_mask"} == set(first) - {"token_mask", "timestep", "emi_weight"}
    for runner in runners.values():
        runner.close()


def test_only_what_is_asked_for_is_run(
    manifest: Manifest, config: RefineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a network was opened")

    monkeypatch.setattr("g4seg_bench.int8_networks.fp32_runner", refuse)
    among = list(scenes(1, 9, manifest.dims.square))
    assert list(inputs_on_scenes(TINY, manifest, among, config, ["vae_encoder"])) == ["vae_encoder"]


def weight_types(graph: Path) -> dict[str, str]:
    """In what the weights of each convolution are stored, by its name."""
    import openvino

    found = {}
    for node in openvino.Core().read_model(graph).get_ordered_ops():
        if node.get_type_name() != "Convolution":
            continue
        above = [node.input_value(1).get_node()]
        while above:
            one = above.pop()
            if one.get_type_name() == "Constant" and len(one.get_output_shape(0)) == 4:
                found[node.get_friendly_name()] = one.get_output_element_type(0).get_type_name()
            above += [port.get_source_output().get_node() for port in one.inputs()[:1]]
    return found


def count(graph: Path, kind: str) -> int:
    import openvino

    return sum(node.get_type_name() == kind for node in openvino.Core().read_model(graph).get_ops())


@pytest.fixture(scope="module")
def forms(manifest: Manifest, config: RefineConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Form]:
    """The tiny VAE decoder, calibrated on two scenes."""
    pytest.importorskip("nncf")
    among = list(scenes(2, 9, manifest.dims.square))
    inputs = inputs_on_scenes(TINY, manifest, among, config, ["vae_decoder"])
    return make_forms(TINY, manifest, "vae_decoder", inputs["vae_decoder"], tmp_path_factory.mktemp("int8"))


def test_weights_are_int8_and_activations_only_in_one_form(forms: dict[str, Form]) -> None:
    exported = weight_types(forms["fp32"].graph)
    assert len(exported) > 10
    assert set(exported.values()) <= {"f32", "f16"}
    for label in (INT8, INT8_WEIGHTS):
        found = weight_types(forms[label].graph)
        assert set(found) == set(exported)
        assert set(found.values()) <= {"i8", "u8"}
        assert weights_mb(forms[label]) < weights_mb(forms["fp32"])
    assert count(forms[INT8].graph, "FakeQuantize") > 10
    assert count(forms[INT8_WEIGHTS].graph, "FakeQuantize") == count(forms["fp32"].graph, "FakeQuantize") == 0


def test_group_norms_are_rewritten_in_every_form_alike(forms: dict[str, Form], manifest: Manifest) -> None:
    found = {label: norm_by_channel(static_model(form.graph, manifest, "vae_decoder")) for label, form in forms.items()}
    assert found["fp32"] > 0
    assert set(found.values()) == {found["fp32"]}


def test_outputs_of_the_forms(forms: dict[str, Form], manifest: Manifest, config: RefineConfig) -> None:
    held_out = inputs_on_scenes(TINY, manifest, list(scenes(3, 10, manifest.dims.square)), config, ["vae_decoder"])
    with opened(forms, manifest, "vae_decoder") as runners:
        found = measure_forms(runners, held_out["vae_decoder"], 2, "vae_decoder")
        exact, rough = (
            np.concatenate([runners[label].run(one)["image"].ravel() for one in held_out["vae_decoder"]])
            for label in ("fp32", INT8)
        )
    assert set(found["seconds"]) == set(forms)
    assert all(len(runs) == 2 and min(runs) > 0 for runs in found["runs"].values())
    errors = found["relative_error"]
    assert set(errors) == set(forms) - {"fp32"}
    expected = np.sqrt(np.mean((rough - exact) ** 2.0) / np.mean(exact**2.0))
    assert errors[INT8] == pytest.approx(expected, rel=1e-2)
    assert 0 < errors[INT8_WEIGHTS] < errors[INT8] < 0.1
    assert found["relative_error_max"][INT8] == pytest.approx(np.abs(rough - exact).max() / exact.max(), rel=1e-2)
    assert "2 runs do not show the noise" in found["unsafe"]


class Constant:
    """A runner whose output is its input times a factor."""

    def __init__(self, spec: NetworkSpec, factor: float) -> None:
        self.spec = spec
        self._factor = np.float32(factor)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {"latent": inputs["image"] * self._factor}

    def close(self) -> None: ...

    def __enter__(self) -> Constant:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def test_errors_by_hand(manifest: Manifest) -> None:
    spec = manifest.spec("vae_encoder")
    runners = {"fp32": Constant(spec, 2.0), "one": Constant(spec, 2.5), "other": Constant(spec, -2.0)}
    found = measure_forms(runners, [{"image": np.array([[1.0, -4.0]], np.float32)}], 1, "hand")
    assert found["relative_error"] == {"one": 0.25, "other": 2.0}
    assert found["relative_error_max"] == {"one": 0.25, "other": 2.0}


@pytest.mark.slow  # opens and compiles many networks
def test_the_command(manifest: Manifest, record_of: Record, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("nncf")
    arguments = ["--engine", "tiny", "--networks", "vae_encoder", "--calibration", 2, "--runs", 1]
    record = record_of(main, *arguments, "--count", 3, "--seed", 12)
    assert (record["benchmark"], record["engine"], record["count"]) == ("int8", "tiny", 3)
    assert list(record["networks"]) == ["vae_encoder"]
    one = record["networks"]["vae_encoder"]
    assert {"fp32", INT8, INT8_WEIGHTS} <= set(one["seconds"]) == set(one["runs"]) == set(one["file_mb"])
    masks = record["masks"]
    assert masks["labels_percent"] == masks["per network"]["vae_encoder"]["labels_percent"]
    assert 90.0 < masks["labels_percent"] <= 100.0
    assert 0.0 < masks["matches_percent"] < 100.0, "the int8 network was not used"
    assert masks["matches_percent"] < masks[INT8_WEIGHTS]["matches_percent"]
    assert masks["gain"] - masks["gain_fp32"] == pytest.approx(masks["gain_difference"], abs=1e-4)

    among = list(scenes(3, 12, manifest.dims.square))
    with Refiner.from_engine("tiny") as refiner:
        expected = gains([refine(refiner, scene, refiner.config) for scene in among], among).mean()
    assert masks["gain_fp32"] == pytest.approx(expected, abs=1e-3)

    printed = capsys.readouterr().out
    assert printed.startswith("tiny, calibrated on 2 scenes\n")
    assert f"| {masks['gain_fp32']:+.3f} ± {masks['gain_fp32_error']:.3f} |" in printed
    assert "| vae_encoder in int8 |" in printed


def test_an_engine_that_is_not_in_fp32(manifest: Manifest) -> None:
    half = replace(
        manifest, networks={**manifest.networks, "unet": replace(manifest.networks["unet"], precision="fp16")}
    )
    check_precision(half, ["vae_encoder"])
    with pytest.raises(EngineError, match="unet of this engine is in fp16, int8 is made from fp32"):
        check_precision(half, NETWORKS)


def test_without_nncf(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    assert main(["--engine", "tiny"]) == 1
    assert capsys.readouterr().err == "python -m g4seg_bench.int8: error: nncf is not installed: pip install nncf\n"


@pytest.mark.parametrize("networks", ["", "text_encoder", "unet,clip"])
def test_networks_that_are_not_tried(networks: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--engine", "tiny", "--networks", networks])
