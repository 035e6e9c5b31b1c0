"""What an earlier run has finished stays: whatever fails later, and wherever outputs are to go."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from g4seg_trt import ConfigError, DatasetSource, OutputError, RefineConfig, Refiner
from g4seg_trt.arrays import Bytes, Floats
from g4seg_trt.class_table import ClassTable
from g4seg_trt.cli.refine import main
from g4seg_trt.dataset.layout import Layout
from g4seg_trt.dataset.result import Result
from g4seg_trt.dataset.run import refine_into, refine_items
from g4seg_trt.dataset.settings import RunOptions, run_settings
from g4seg_trt.errors import ImageError, MaskError
from g4seg_trt.masks import read_mask
from g4seg_trt.postprocess import PostProcess
from g4seg_trt.update import BackgroundRule
from tests.folders import files

if TYPE_CHECKING:
    from tests.dataset.conftest import Dataset

    Outputs = Callable[[Path], dict[str, bytes]]
    Lines = Callable[[Path], list[dict[str, object]]]

COCO = ClassTable.of_dataset("coco-object")


class Failing(PostProcess):
    """Fails as it is told to."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    @property
    def name(self) -> str:
        return "failing"

    def parameters(self) -> dict[str, Any]:
        return {}

    def check(self) -> None:
        return

    def _process(
        self,
        image: Bytes,  # noqa: ARG002
        probabilities: Floats,  # noqa: ARG002
        rule: BackgroundRule,  # noqa: ARG002
        background: Floats | None,  # noqa: ARG002
    ) -> Floats:
        raise self.error


def source_of(dataset: Dataset, **more: Any) -> DatasetSource:
    return DatasetSource.from_folders(dataset.images, dataset.masks, class_name="disc", **more)


def states(refiner: Refiner, source: DatasetSource, output: Path, **more: Any) -> list[str]:
    return [result.state for result in refiner.refine_dataset(source, output, resume=True, **more)]


def compared(refiner: Refiner, source: DatasetSource, output: Path, compare: PostProcess) -> list[Result]:
    """As the command does with --resume --compare."""
    settings = run_settings(refiner.fingerprint(), refiner.config, None, source.table)
    options = RunOptions(refiner.config, compare=compare)
    layout = Layout(output, named=source.keeps_names)
    refine = partial(refine_items, refiner)
    return list(refine_into(refine, source, settings, options, layout, resume=True, shard=None))


def test_a_comparison_that_fails_leaves_what_is_done(
    refiner: Refiner, dataset: Dataset, outputs_of: Outputs, lines_of: Lines
) -> None:
    source = source_of(dataset, truth=dataset.truth)
    states(refiner, source, dataset.output)
    before = outputs_of(dataset.output)
    results = compared(refiner, source, dataset.output, Failing(MaskError("no")))
    assert [(result.state, str(result.error), result.kept) for result in results] == [("failed", "no", True)] * 5
    assert outputs_of(dataset.output) == before
    assert not [line for line in lines_of(dataset.output) if "withdrawn" in line]
    assert states(refiner, source, dataset.output) == ["skipped"] * 5


def test_what_is_of_other_inputs_does_not_stay(refiner: Refiner, dataset: Dataset, outputs_of: Outputs) -> None:
    source = source_of(dataset, truth=dataset.truth)
    states(refiner, source, dataset.output)
    second = dataset.stems[1]
    Image.fromarray(np.asarray(Image.open(dataset.images / f"{second}.png"))[::-1].copy()).save(
        dataset.images / f"{second}.png"
    )
    results = compared(refiner, source, dataset.output, Failing(MaskError("no")))
    assert [result.kept for result in results] == [True, False, True, True, True]
    assert not [name for name in outputs_of(dataset.output) if second in name]
    assert states(refiner, source, dataset.output) == ["skipped", "refined", *["skipped"] * 3]


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")], ids=["host", "gpu"]
)
def test_too_little_memory_for_one_image_is_its_failure(error: Exception, refiner: Refiner, dataset: Dataset) -> None:
    results = list(refiner.refine_dataset(source_of(dataset), post=Failing(error)))
    assert len(results) == 5
    for result in results:
        assert isinstance(result.error, ImageError)
        assert str(result.error) == "post-processing failing: out of memory at 64x64 pixels and 1 classes"


def test_a_bug_of_a_post_processing_keeps_its_traceback(refiner: Refiner, dataset: Dataset) -> None:
    with pytest.raises(RuntimeError, match="wrong"):
        list(refiner.refine_dataset(source_of(dataset), post=Failing(RuntimeError("wrong"))))


def test_a_new_picture_that_cannot_be_written_leaves_the_others(
    refiner: Refiner, dataset: Dataset, outputs_of: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    states(refiner, source_of(dataset), dataset.output)
    before = outputs_of(dataset.output)

    def refuse(path: Path, _: Any) -> None:
        raise OutputError(f"cannot write {path}")

    monkeypatch.setattr("g4seg_trt.dataset.writing.write_overlay", refuse)
    assert states(refiner, source_of(dataset), dataset.output, overlay=True) == ["failed"] * 5
    assert outputs_of(dataset.output) == before
    monkeypatch.undo()
    assert states(refiner, source_of(dataset), dataset.output) == ["skipped"] * 5
    monkeypatch.setattr("g4seg_trt.dataset.writing.write_overlay", refuse)
    fresh = dataset.root / "fresh"
    assert states(refiner, source_of(dataset), fresh, overlay=True) == ["failed"] * 5
    assert not outputs_of(fresh), "of a new image there is nothing to keep"


@pytest.mark.parametrize("kind", ["probability", "label", "masks"])
def test_python_never_writes_over_inputs(kind: str, refiner: Refiner, dataset: Dataset) -> None:
    output = dataset.root / "e6"
    list(refiner.refine_dataset(source_of(dataset), output))
    inputs = output / kind
    for path in inputs.glob("*.npz"):
        path.unlink()
    source = DatasetSource.from_folders(dataset.images, inputs, class_name="disc")
    before = files(dataset.root)
    with pytest.raises(OutputError, match=rf"cannot write .*{kind}.*: it is the input"):
        list(refiner.refine_dataset(source, output, resume=True))
    assert files(dataset.root) == before


def test_what_only_concerns_outputs_needs_a_folder(refiner: Refiner, dataset: Dataset) -> None:
    with pytest.raises(ConfigError, match="resume, overlay without an output folder"):
        refiner.refine_dataset(source_of(dataset), overlay=True, resume=True)
    with pytest.raises(ConfigError, match="matches without an output folder"):
        refiner.refine_dataset(source_of(dataset), matches=True)


@pytest.fixture
def coco(dataset: Dataset) -> DatasetSource:
    """All masks in res.json; images are called by numbers."""
    rle = pytest.importorskip("pycocotools.mask")
    results = []
    for number, stem in enumerate(dataset.stems, start=1):
        mask = read_mask(next(dataset.masks.glob(f"{stem}.*")), "disc")
        code = rle.encode(np.asfortranarray((mask > 0.5).astype(np.uint8)))
        code["counts"] = code["counts"].decode()
        results.append({"image_id": number, "category_id": 18, "segmentation": code, "score": 0.75})
        for folder in (dataset.images, dataset.truth):
            (folder / f"{stem}.png").rename(folder / f"{number:012d}.png")
    file = dataset.root / "res.json"
    file.write_text(json.dumps(results), "ascii")
    for path in dataset.truth.iterdir():
        Image.fromarray((np.asarray(Image.open(path)) > 0).astype(np.uint8) * np.uint8(17)).save(path)  # dog
    return DatasetSource.from_folders(dataset.images, file, table=COCO, truth=dataset.truth)


def test_an_image_that_fails_later_stays_refined_in_the_file_of_all(
    refiner: Refiner, coco: DatasetSource, dataset: Dataset
) -> None:
    states(refiner, coco, dataset.output)
    back = dataset.output / "masks" / "res.json"
    refined = back.read_bytes()
    assert json.loads(refined) != json.loads((dataset.root / "res.json").read_bytes())
    (dataset.truth / "000000000003.png").write_bytes(b"no picture")
    results = list(refiner.refine_dataset(coco, dataset.output, resume=True))
    assert [(result.state, result.kept) for result in results if result.stem.endswith("3")] == [("failed", True)]
    assert back.read_bytes() == refined
    (dataset.output / "probability" / "000000000003.npz").unlink()
    results = list(refiner.refine_dataset(coco, dataset.output, resume=True))
    assert [result.kept for result in results if result.stem.endswith("3")] == [False]
    given = {one["image_id"]: one for one in json.loads((dataset.root / "res.json").read_bytes())}
    assert given[3] in json.loads(back.read_bytes()), "as it came, for there is nothing else"


def test_a_part_that_changes_removes_the_file_of_all(refiner: Refiner, coco: DatasetSource, dataset: Dataset) -> None:
    back = dataset.output / "masks" / "res.json"
    config = RefineConfig(beta=0.3)
    states(refiner, coco, dataset.output)
    assert states(refiner, coco, dataset.output, limit=3) == ["skipped"] * 3
    assert states(refiner, coco, dataset.output, limit=3, overlay=True) == ["refined"] * 3
    assert back.exists(), "the same masks"
    assert states(refiner, coco, dataset.output, limit=2, config=config) == ["refined"] * 2
    assert not back.exists()
    assert states(refiner, coco, dataset.output, config=config) == [*["skipped"] * 2, *["refined"] * 3]
    assert back.exists()
    run = refiner.refine_dataset(coco, dataset.output, resume=True)
    next(run)
    run.close()
    assert not back.exists(), "a whole run that is left early is as a part"
    states(refiner, coco, dataset.output)
    assert back.exists()


def test_an_image_that_comes_later_removes_the_file_of_all(
    refiner: Refiner, coco: DatasetSource, dataset: Dataset
) -> None:
    first = dataset.images / "000000000001.png"
    whole = first.read_bytes()
    first.write_bytes(b"no picture")
    back = dataset.output / "masks" / "res.json"
    assert states(refiner, coco, dataset.output) == ["failed", *["refined"] * 4]
    assert back.exists()
    first.write_bytes(whole)
    assert states(refiner, coco, dataset.output, limit=1) == ["refined"]
    assert not back.exists()


def test_the_command_says_that_the_file_of_all_is_gone(
    coco: DatasetSource, dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--engine", "tiny", "--threads", "1", "--images", str(coco.images), "--resume"]
    arguments += ["--masks", str(dataset.root / "res.json"), "--dataset", "coco-object", "--output"]
    arguments += [str(dataset.output)]
    gone = f"warning: {dataset.output / 'masks' / 'res.json'} was of results that have changed and is removed"
    assert main(arguments) == 0
    assert gone not in capsys.readouterr().err
    assert main([*arguments, "--limit", "2", "--beta", "0.3"]) == 0
    assert gone in capsys.readouterr().err
    assert main([*arguments, "--limit", "2", "--beta", "0.4"]) == 0
    assert gone not in capsys.readouterr().err, "there was none"


def test_images_in_which_a_detector_found_nothing_are_background(
    refiner: Refiner, coco: DatasetSource, dataset: Dataset
) -> None:
    file = dataset.root / "res.json"
    left: list[Mapping[str, Any]] = [one for one in json.loads(file.read_bytes()) if one["image_id"] != 2]
    file.write_text(json.dumps(left), "ascii")
    Image.new("RGB", (64, 64)).save(dataset.images / "no number.png")
    source = DatasetSource.from_folders(coco.images, file, table=COCO, truth=dataset.truth)
    results = {result.stem: result for result in refiner.refine_dataset(source, dataset.output)}
    empty, other = results["000000000002"], results["no number"]
    assert empty.refinement is not None, empty.error
    assert empty.refinement.warnings == ["000000000002.png: no class has a mask"]
    assert empty.counts is not None
    assert {true for true, _ in empty.counts["refined"].pixels} == {"", "dog"}, "what it misses counts"
    assert not np.asarray(Image.open(dataset.output / "label" / "000000000002.png")).any()
    assert "has nothing about it" in str(other.error)
    again = {result.stem: result.state for result in refiner.refine_dataset(source, dataset.output, resume=True)}
    assert again == {**dict.fromkeys(results, "skipped"), "no number": "failed"}
    assert [one["image_id"] for one in json.loads((dataset.output / "masks" / "res.json").read_bytes())] == [1, 3, 4, 5]
    file.write_text(json.dumps([{**one, "image_id": 77} for one in left[:1]]), "ascii")
    alien = DatasetSource.from_folders(coco.images, file, table=COCO)
    assert {result.state for result in refiner.refine_dataset(alien)} == {"failed"}, "the file is of other images"


def test_half_written_reports_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    old, new, other = (tmp_path / f".g4seg-{letter * 16}.part" for letter in "abc")
    for path in (old, new):
        path.write_bytes(b"<html>")
    other.with_suffix(".html").write_bytes(b"")
    os.utime(old, (time.time() - 7200,) * 2)
    layout.remove_leftovers()
    assert not old.exists()
    assert new.exists(), "another run may be writing it"
    assert other.with_suffix(".html").exists()


def test_a_folder_that_cannot_be_listed_has_no_leftovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that may be written to and not be read; this user may perhaps read any."""
    listed, layout = Path.iterdir, Layout(tmp_path)
    half = layout.records / f".g4seg-{'a' * 16}.part"
    layout.records.mkdir()
    half.write_bytes(b"")

    def refuse(path: Path) -> Iterator[Path]:
        if path == tmp_path:
            raise PermissionError
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    layout.remove_leftovers()
    assert not half.exists()
