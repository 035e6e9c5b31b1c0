"""What makes results differ, and what does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from g4seg_trt import DatasetSource, OutputError, RefineConfig, Refiner
from g4seg_trt.backends import Execution, fingerprint_of
from g4seg_trt.dataset.settings import differences, run_settings
from g4seg_trt.dataset.untouched import Untouched

if TYPE_CHECKING:
    from tests.dataset.conftest import Dataset


def test_results_depend_on_the_kind_of_device_and_not_on_which_of_them(refiner: Refiner) -> None:
    cpu = Execution("onnxruntime", "cpu", "fp32")
    cuda, second = replace(cpu, device="cuda"), replace(cpu, device="cuda:1", reason="there is a GPU")
    found = [fingerprint_of(refiner.manifest, one) for one in (cpu, cuda, second)]
    assert found[0] == refiner.fingerprint()
    assert found[1] == found[2]
    assert {name for name in found[0] if found[0][name] != found[1][name]} == {"device"}
    others = [replace(cpu, backend="openvino"), replace(cpu, compute_precision="bf16")]
    assert all(fingerprint_of(refiner.manifest, one) != found[0] for one in others)
    without = Untouched().fingerprint()
    assert without.keys() == found[0].keys()
    assert {name for name, value in without.items() if value} == {"version"}


def test_how_a_run_is_made_is_no_setting() -> None:
    with (
        Refiner.from_engine("tiny", batch_size=1, threads=1) as one,
        Refiner.from_engine("tiny", batch_size=3, threads=2, low_memory=True, cache=False) as other,
    ):
        assert one.fingerprint() == other.fingerprint()


def test_differences_are_said_with_both_values() -> None:
    settings = run_settings({"engine manifest sha256": "0" * 64}, RefineConfig(beta=0.5), None, None)
    other = run_settings(
        {"engine manifest sha256": "1" * 64}, RefineConfig(beta=0.25, certainty_filter=None), None, None
    )
    assert differences(settings, settings) == ""
    assert differences(settings, other) == (
        "engine manifest sha256 000000000000..., now 111111111111...; beta 0.5, now 0.25; "
        "certainty_filter [0.2, 0.6], now null"
    )
    del other["post"]
    assert "post" not in differences(settings, other), "none is as none"


def test_shards_from_python_keep_to_one_setting(
    refiner: Refiner, dataset: Dataset, outputs_of: Callable[[Path], dict[str, bytes]]
) -> None:
    source = DatasetSource.from_folders(dataset.images, dataset.masks, class_name="disc")
    list(refiner.refine_dataset(source, dataset.output, shard=(1, 2)))
    before, other = outputs_of(dataset.output), replace(refiner.config, beta=0.75)
    with pytest.raises(OutputError, match=r"the shard 1/2 with other settings \(beta 0.0, now 0.75\)"):
        list(refiner.refine_dataset(source, dataset.output, shard=(2, 2), config=other))
    assert outputs_of(dataset.output) == before
    list(refiner.refine_dataset(source, dataset.output, shard=(2, 2), config=other, resume=True))
    assert outputs_of(dataset.output).items() > before.items()
