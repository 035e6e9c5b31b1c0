"""CascadePSP's adapter against a fake package: what it hands over, and how the classes come together again.

The real network was never run here; the fake keeps the real package's signatures, which `test_the_fake_...` holds
against it where it is installed.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import shutil
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from g4seg_trt.errors import ConfigError, MissingExtraError
from g4seg_trt.masks.labels import NO_BACKGROUND
from g4seg_trt.postprocess import CascadePsp, parse_post
from g4seg_trt.update import BackgroundRule, label_map

FAKE = Path(__file__).parent / "fake_segmentation_refinement.py"
HALF = BackgroundRule("constant", 0.5)
PACKAGE = "segmentation_refinement"

Calls = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Calls:
    """The fake on sys.path, weights in ~/.segmentation-refinement; gives what the fake was asked."""
    packages = tmp_path / "packages"
    packages.mkdir()
    shutil.copy(FAKE, packages / f"{PACKAGE}.py")
    for name in ("torchvision", "requests"):  # looked for, not used
        (packages / f"{name}.py").touch()
    monkeypatch.syspath_prepend(packages)
    monkeypatch.delitem(sys.modules, PACKAGE, raising=False)
    home = tmp_path / "home"
    (home / ".segmentation-refinement").mkdir(parents=True)
    log = tmp_path / "calls"
    (home / ".segmentation-refinement" / "model").write_text(str(log), encoding="utf-8")
    monkeypatch.setattr(Path, "home", lambda: home)

    def read() -> list[dict[str, Any]]:
        return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []

    return read


@pytest.fixture(autouse=True)
def forget_the_fake() -> Any:
    yield
    sys.modules.pop(PACKAGE, None)


def scene() -> tuple[Any, Any]:
    """Red above, blue below; the first class upper left, the second lower right, the third nowhere."""
    image = np.zeros((4, 6, 3), dtype=np.uint8)
    image[:2] = (250, 0, 0)
    image[2:] = (10, 0, 250)
    probabilities = np.zeros((3, 4, 6), dtype=np.float32)
    probabilities[0, :2, :3] = 0.8
    probabilities[1, 2:, 3:] = 0.9
    probabilities[2] = 0.3
    return image, probabilities


def test_each_class_is_handed_over_as_its_region(calls: Calls) -> None:
    image, probabilities = scene()
    post = parse_post("cascadepsp")
    assert calls() == []
    result = post.apply(image, probabilities, HALF)
    device, first, second = calls()
    assert device["device"] in ("cpu", "cuda")
    assert first == second == {"pixels": 6, "fast": False, "L": 900}
    assert result.dtype == np.float32
    # BGR: the fake found red in the upper half, and 10/255 of it below.
    np.testing.assert_allclose(result[0, :2], 250 / 255, atol=0.005)
    assert not result[0, 2:].any()
    np.testing.assert_allclose(result[1, 2:], 10 / 255, atol=0.005)
    assert not result[2].any()
    assert label_map(result, HALF).tolist() == [[1] * 6] * 2 + [[0] * 6] * 2


def test_the_model_is_loaded_once_and_settings_are_passed_on(calls: Calls) -> None:
    image, probabilities = scene()
    post = CascadePsp(fast=True, length=300, device="cpu")
    for _ in range(2):
        post.apply(image, probabilities[:1], HALF)
    assert calls() == [{"device": "cpu"}, *[{"pixels": 6, "fast": True, "L": 300}] * 2]


def test_the_rule_decides_what_goes_in_and_what_comes_out(calls: Calls) -> None:
    image, probabilities = scene()
    post = CascadePsp(device="cpu")
    rule = BackgroundRule("constant", 0.25)
    result = post.apply(image, probabilities, rule)
    # Under this rule the third class has what the others leave.
    assert [call["pixels"] for call in calls()[1:]] == [6, 6, 12]
    assert (label_map(result, rule)[:2] == 1).all()
    assert (label_map(result, rule)[2:] == 0).all()
    channel = np.full((4, 6), 0.85, dtype=np.float32)
    taken = post.apply(image, probabilities, BackgroundRule("channel", 0.0), channel)
    assert [call["pixels"] for call in calls()[4:]] == [6]
    assert not taken[0].any()


def test_without_background_no_pixel_becomes_background(calls: Calls) -> None:
    image = np.zeros((3, 6, 3), dtype=np.uint8)
    image[0], image[1], image[2] = (250, 0, 0), (90, 0, 0), (0, 90, 0)
    probabilities = np.zeros((2, 3, 6), dtype=np.float32)
    probabilities[0, :, :2], probabilities[1, :, 2:] = 0.4, 0.3
    probabilities[0, 0, 2:] = 0.2
    result = CascadePsp(device="cpu").apply(image, probabilities, NO_BACKGROUND)
    assert [call["pixels"] for call in calls()[1:]] == [6, 12]
    # In the first two rows the fake wants both classes everywhere, also where neither reaches a half; below none.
    np.testing.assert_allclose(result[:, 1], 90 / 255, atol=0.005)
    assert label_map(result, NO_BACKGROUND).tolist() == [[1] * 6, [1] * 6, [1, 1, 2, 2, 2, 2]]
    assert not label_map(CascadePsp(device="cpu").apply(image, probabilities, HALF), HALF).any()


def test_its_parameters_are_all_that_results_depend_on(calls: Calls, tmp_path: Path) -> None:
    weights = tmp_path / "home" / ".segmentation-refinement" / "model"
    found = CascadePsp(device="cpu").parameters()
    assert found["weights sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert json.loads(json.dumps(found)) == found
    assert CascadePsp(device="cpu").parameters() == found
    assert CascadePsp(device="cuda").parameters() == CascadePsp(device="cuda:1").parameters()
    for other in (CascadePsp(device="cpu", length=300), CascadePsp(device="cpu", fast=True), CascadePsp(device="cuda")):
        assert other.parameters() != found
    weights.write_text("others", encoding="utf-8")
    assert CascadePsp(device="cpu").parameters() != found
    weights.unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        CascadePsp(device="cpu").parameters()
    assert calls() == [], "nothing is loaded for it"


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 1)])
def test_odd_sizes(calls: Calls, size: tuple[int, int]) -> None:
    image = np.full((*size, 3), 255, dtype=np.uint8)
    result = CascadePsp().apply(image, np.full((1, *size), 0.7, dtype=np.float32), HALF)
    assert (result == 1).all()
    assert len(calls()) == 2


def test_nothing_to_refine_loads_nothing(calls: Calls) -> None:
    image, probabilities = scene()
    assert not CascadePsp().apply(image, 0 * probabilities, HALF).any()
    assert calls() == []


def test_missing_weights_are_named_before_anything_runs(calls: Calls, tmp_path: Path) -> None:
    (tmp_path / "home" / ".segmentation-refinement" / "model").unlink()
    with pytest.raises(ConfigError, match=r"no weights at .*model: put the file there that https://"):
        parse_post("pamr,cascadepsp:fast")
    with pytest.raises(ConfigError, match=r"other.model: put"):
        CascadePsp(model_folder=tmp_path / "other").apply(*scene(), HALF)
    assert calls() == []


def test_a_length_that_leaves_no_window_is_refused() -> None:
    with pytest.raises(ConfigError, match="length is 65, allowed: 66 or more"):
        CascadePsp(length=65)


@pytest.mark.parametrize("package", [PACKAGE, "torchvision"])
def test_a_missing_package_is_named(calls: Calls, tmp_path: Path, package: str) -> None:
    (tmp_path / "packages" / f"{package}.py").unlink()
    with pytest.raises(MissingExtraError, match=rf"{package} is not installed: pip install 'g4seg-trt\[cascadepsp\]'"):
        parse_post("cascadepsp")
    assert calls() == []


def test_the_fake_has_the_signatures_of_the_real_package() -> None:
    real = pytest.importorskip(PACKAGE, reason="segmentation-refinement is not installed")
    spec = spec_from_file_location("fake", FAKE)
    assert spec is not None
    assert spec.loader is not None
    fake = module_from_spec(spec)
    spec.loader.exec_module(fake)
    for name in ("__init__", "refine"):
        signatures = [inspect.signature(getattr(module.Refiner, name)) for module in (real, fake)]
        assert list(signatures[0].parameters) == list(signatures[1].parameters)
