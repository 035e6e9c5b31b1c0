"""Every user's error in a real process: one line on stderr, exit 1, no traceback, nothing written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from tests.cli.conftest import Command, Done, Folder, Scene

    Files = Callable[[Path], dict[str, bytes]]

Change = Callable[[dict[str, Any], Path], None]


def refused(done: Done, words: str) -> None:
    """One line that holds the words, and exit 1."""
    assert done.code == 1, done.err
    assert len(done.lines) == 1, done.err
    assert done.lines[0].startswith("g4seg-")
    assert words in done.lines[0]
    assert done.out == ""


def missing_image(options: dict[str, Any], folder: Path) -> None:
    options["--image"] = folder / "no such.jpg"


def truncated_image(options: dict[str, Any], folder: Path) -> None:
    path = folder / "cut.jpg"
    Image.effect_noise((200, 200), 50).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    options["--image"] = path


def text_as_image(options: dict[str, Any], folder: Path) -> None:
    options["--image"] = folder / "text.png"
    (folder / "text.png").write_text("no picture")


def folder_as_image(options: dict[str, Any], folder: Path) -> None:
    options["--image"] = folder


def bomb(options: dict[str, Any], folder: Path) -> None:
    path = folder / "large.png"
    Image.new("1", (14_000, 13_000)).save(path)
    options["--image"] = path


def mask_of_other_size(options: dict[str, Any], folder: Path) -> None:
    Image.new("L", (61, 48)).save(folder / "large.png")
    options["--mask"] = folder / "large.png"


def missing_mask(options: dict[str, Any], folder: Path) -> None:
    options["--mask"] = folder / "no such.png"


def text_as_mask(options: dict[str, Any], folder: Path) -> None:
    options["--mask"] = folder / "text.png"
    (folder / "text.png").write_text("no picture")


def truncated_mask(options: dict[str, Any], folder: Path) -> None:
    data = Path(options["--mask"]).read_bytes()
    (folder / "cut.png").write_bytes(data[: len(data) // 2])
    options["--mask"] = folder / "cut.png"


def mask_of_values(*values: float) -> Change:
    def change(options: dict[str, Any], folder: Path) -> None:
        mask = np.full((48, 60), 0.5)
        mask[0, : len(values)] = values
        np.save(folder / "mask.npy", mask)
        options["--mask"] = folder / "mask.npy"

    return change


def mask_of_ones(options: dict[str, Any], folder: Path) -> None:
    Image.fromarray(np.eye(48, 60, dtype=np.uint8)).save(folder / "ones.png")
    options["--mask"] = folder / "ones.png"


def mask_of_suffix(options: dict[str, Any], folder: Path) -> None:
    shutil.copy(options["--mask"], folder / "mask.tiff")
    options["--mask"] = folder / "mask.tiff"


def class_name(name: str) -> Change:
    def change(options: dict[str, Any], _folder: Path) -> None:
        options["--class-name"] = name

    return change


def option(name: str, value: str) -> Change:
    def change(options: dict[str, Any], folder: Path) -> None:
        options[name] = value.replace("FOLDER", str(folder))

    return change


def missing_engine(options: dict[str, Any], folder: Path) -> None:
    options["--engine"] = folder / "no engine"


def half_built_engine(options: dict[str, Any], _folder: Path) -> None:
    (options["--engine"] / "manifest.json").unlink()


def incomplete_engine(options: dict[str, Any], _folder: Path) -> None:
    (options["--engine"] / "unet.onnx").unlink()


def changed_engine(options: dict[str, Any], _folder: Path) -> None:
    path = options["--engine"] / "unet.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")


def newer_engine(options: dict[str, Any], _folder: Path) -> None:
    path = options["--engine"] / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), "schema": 99}), "utf-8")


def damaged_manifest(options: dict[str, Any], _folder: Path) -> None:
    path = options["--engine"] / "manifest.json"
    path.write_text(path.read_text("utf-8")[:100], "utf-8")


def output_is_input(name: str, target: str) -> Change:
    def change(options: dict[str, Any], _folder: Path) -> None:
        options[name] = options[target]

    return change


def output_links_to_input(options: dict[str, Any], folder: Path) -> None:
    (folder / "link.png").symlink_to(options["--mask"])
    options["--output"] = folder / "link.png"


def output_is_engine_file(options: dict[str, Any], _folder: Path) -> None:
    options["--json"] = options["--engine"] / "manifest.json"


CASES: dict[str, tuple[Change, str]] = {
    "missing image": (missing_image, "no such.jpg: no such file"),
    "truncated image": (truncated_image, "cut.jpg"),
    "text as image": (text_as_image, "text.png"),
    "folder as image": (folder_as_image, "folder"),
    "decompression bomb": (bomb, "large.png"),
    "size of the mask": (mask_of_other_size, "61x48 pixels, its image is 60x48"),
    "missing mask": (missing_mask, "no such.png: no such file"),
    "text as mask": (text_as_mask, "text.png"),
    "truncated mask": (truncated_mask, "cut.png"),
    "NaN": (mask_of_values(np.nan), "NaN"),
    "infinite": (mask_of_values(np.inf), "infinite"),
    "above 1": (mask_of_values(2.0), "from 0.5 to 2"),
    "below 0": (mask_of_values(-1.0), "from -1 to 0.5"),
    "mask of ones": (mask_of_ones, "may be a soft mask of one class or hold class ids"),
    "mask format": (mask_of_suffix, "'.tiff', allowed: .png, .npy, .npz"),
    "empty class": (class_name(""), "empty"),
    "blank class": (class_name("  "), "empty"),
    "long class": (class_name("x" * 500), "tokens"),
    "missing engine": (missing_engine, "does not exist"),
    "half-built engine": (half_built_engine, "half-built"),
    "incomplete engine": (incomplete_engine, "unet.onnx is missing"),
    "changed engine": (changed_engine, "sha256"),
    "newer engine": (newer_engine, "schema 99"),
    "damaged manifest": (damaged_manifest, "damaged"),
    "folder of the output": (option("--output", "FOLDER/none/out.png"), "none does not exist"),
    "folder of the report": (option("--json", "FOLDER/none/out.json"), "none does not exist"),
    "format of the output": (option("--output", "FOLDER/out.jpg"), "out.jpg"),
    "format of the label": (option("--label", "FOLDER/out.jpg"), "out.jpg"),
    "format of the overlay": (option("--overlay", "FOLDER/out.txt"), "out.txt"),
    "device as output": (option("--json", os.devnull), "not a regular file"),
    "two outputs of one name": (option("--label", "FOLDER/out.png"), "another output"),
    "output over the image": (output_is_input("--output", "--image"), "it is the input"),
    "label over the mask": (output_is_input("--label", "--mask"), "it is the input"),
    "output over a link": (output_links_to_input, "it is the input"),
    "output over the engine": (output_is_engine_file, "it is the input"),
    "format of the matches": (option("--matches", "FOLDER/out.gif"), "a picture of the matches is written as .png"),
    "matches over the truth": (output_is_input("--matches", "--ground-truth"), "it is the input"),
    "matches over the output": (option("--matches", "FOLDER/out.png"), "another output has the same name"),
    "matches below nothing": (option("--matches", "FOLDER/none/out.png"), "none does not exist"),
    "overlay over the truth": (output_is_input("--overlay", "--ground-truth"), "it is the input"),
    "size of the truth": (option("--ground-truth", "FOLDER/tiny.png"), "3x3 pixels, its image is 60x48"),
    "missing truth": (option("--ground-truth", "FOLDER/none.png"), "none.png: no such file"),
    "beta": (option("--beta", "1.5"), "beta is 1.5, allowed"),
    "radius 0": (option("--radius", "0"), "radius is 0.0, allowed"),
    "radius 1.5": (option("--radius", "1.5"), "radius is 1.5, allowed"),
    "radius nan": (option("--radius", "nan"), "radius is nan, allowed"),
    "timestep": (option("--timestep", "1000"), "timestep is 1000, allowed"),
    "filter": (option("--certainty-filter", "0.6,0.2"), "lower bound first"),
    "filter range": (option("--certainty-filter", "0.6,1.2"), "allowed"),
    "background": (option("--background", "blue"), "'blue', allowed"),
    "channel": (option("--background", "channel"), "--mask background=FILE"),
    "batch size": (option("--batch-size", "0"), "batch size is 0"),
    "threads": (option("--threads", "0"), "threads is 0"),
    "device": (option("--device", "abacus"), "abacus"),
}


@pytest.fixture
def options(toy_engine: Path, scene: Scene, tmp_path: Path) -> dict[str, Any]:
    engine = tmp_path / "engine"
    shutil.copytree(toy_engine, engine)
    Image.new("L", (3, 3)).save(tmp_path / "tiny.png")
    return {
        "--engine": engine,
        "--image": scene.image,
        "--mask": scene.mask,
        "--class-name": "disc",
        "--output": tmp_path / "out.png",
        "--ground-truth": scene.truth,
    }


@pytest.mark.parametrize(("change", "words"), CASES.values(), ids=CASES.keys())
def test_one_line_exit_1_and_nothing_written(
    refine: Command,
    options: dict[str, Any],
    tmp_path: Path,
    files_of: Files,
    change: Change,
    words: str,
) -> None:
    change(options, tmp_path)
    before = files_of(tmp_path)
    refused(refine(*[part for pair in options.items() for part in pair]), words)
    assert files_of(tmp_path) == before


USAGE: dict[str, tuple[list[str], str]] = {
    "no arguments": ([], "--output"),
    "no engine": (["--output", "o", "--image", "i", "--mask", "m"], "required: --engine"),
    "no mode": (["--engine", "e", "--output", "o"], "either --image"),
    "two modes": (["--engine", "e", "--output", "o", "--image", "i", "--images", "d"], "either --image"),
    "image without mask": (["--engine", "e", "--output", "o", "--image", "i"], "needs --mask"),
    "images without masks": (["--engine", "e", "--output", "o", "--images", "i"], "needs --masks"),
    "mask without name": (
        ["--engine", "e", "--output", "o", "--image", "i", "--mask", "m", "--mask", "a=b"],
        "NAME=FILE",
    ),
    "nothing to do": (["--no-refine", "--output", "o", "--image", "i", "--mask", "m"], "--no-refine goes with --post"),
    "comparison without truth": (
        ["--engine", "e", "--output", "o", "--images", "i", "--masks", "m", "--compare", "pamr"],
        "--compare goes with --ground-truth",
    ),
    "format of several masks": (
        ["--engine", "e", "--output", "o", "--image", "i", "--mask", "a=b", "--mask", "c=d", "--format", "png"],
        "--format goes with a single --mask",
    ),
    "folder option for one image": (
        ["--engine", "e", "--output", "o", "--image", "i", "--mask", "m", "--classes", "c"],
        "--classes goes with --images",
    ),
    "image option for a folder": (
        ["--engine", "e", "--output", "o", "--images", "i", "--masks", "m", "--label", "l"],
        "--label goes with --image",
    ),
    "overlay without file": (
        ["--engine", "e", "--output", "o", "--image", "i", "--mask", "m", "--class-name", "c", "--overlay"],
        "needs a FILE",
    ),
    "overlay file for a folder": (
        ["--engine", "e", "--output", "o", "--images", "i", "--masks", "m", "--overlay", "x.png"],
        "takes no FILE",
    ),
    "matches without file": (
        ["--engine", "e", "--output", "o", "--image", "i", "--mask", "m", "--class-name", "c", "--matches"],
        "--matches needs a FILE",
    ),
    "matches file for a folder": (
        ["--engine", "e", "--output", "o", "--images", "i", "--masks", "m", "--matches", "x.png"],
        "--matches takes no FILE with --images: pictures go to OUTPUT/matches",
    ),
    "two masks of one class": (
        ["--engine", "e", "--output", "o", "--image", "i", "--mask", "m", "--mask", "n", "--class-name", "c"],
        "takes one --mask",
    ),
    "two sources of names": (
        [
            "--engine",
            "e",
            "--output",
            "o",
            "--images",
            "i",
            "--masks",
            "m",
            "--classes",
            "c",
            "--class-name",
            "n",
        ],
        "either --class-name",
    ),
    "radius that is no number": (["--engine", "e", "--output", "o", "--radius", "far"], "--radius"),
    "not a number": (["--engine", "e", "--output", "o", "--beta", "much"], "--beta"),
    "filter that cannot be read": (
        ["--engine", "e", "--output", "o", "--certainty-filter", "0.2"],
        "0.2,0.6",
    ),
    "backend of the future": (["--engine", "e", "--output", "o", "--backend", "abacus"], "abacus"),
    "abbreviation": (["--eng", "e", "--output", "o"], "--eng"),
}


@pytest.mark.parametrize(("arguments", "words"), USAGE.values(), ids=USAGE.keys())
def test_wrong_usage_is_exit_2(refine_here: Command, arguments: list[str], words: str) -> None:
    done = refine_here(*arguments)
    assert done.code == 2
    assert words in done.lines[-1]


def no_masks_folder(options: dict[str, Any], folder: Folder) -> None:
    options["--masks"] = folder.root / "none"


def no_images(_options: dict[str, Any], folder: Folder) -> None:
    for path in folder.images.iterdir():
        path.unlink()


def image_file_as_folder(options: dict[str, Any], folder: Folder) -> None:
    options["--images"] = folder.images / "a.png"


def classes_file(text: str) -> Callable[[dict[str, Any], Folder], None]:
    def change(options: dict[str, Any], folder: Folder) -> None:
        (folder.root / "classes.json").write_text(text, "utf-8")
        options["--classes"] = folder.root / "classes.json"

    return change


def output_below_nothing(options: dict[str, Any], folder: Folder) -> None:
    options["--output"] = folder.root / "none" / "out"


def output_is_a_file(options: dict[str, Any], folder: Folder) -> None:
    options["--output"] = folder.root / "classes.json"


def report_over_a_mask(options: dict[str, Any], folder: Folder) -> None:
    options["--json"] = folder.masks / "a.png"


def missing_engine_of_folder(options: dict[str, Any], folder: Folder) -> None:
    options["--engine"] = folder.root / "no engine"


FOLDER_CASES: dict[str, tuple[Callable[[dict[str, Any], Folder], None], str]] = {
    "no masks": (no_masks_folder, "no such mask folder"),
    "no images": (no_images, "holds no image"),
    "file as folder": (image_file_as_folder, "not a folder"),
    "classes no JSON": (classes_file("{"), "not a JSON file"),
    "classes no object": (classes_file("[1]"), "expected an object"),
    "classes of numbers": (classes_file('{"a": 3}'), "'a' has 3"),
    "classes without name": (classes_file('{"a": " "}'), "empty"),
    "classes doubled": (classes_file('{"a": ["cat", "cat"]}'), "given twice"),
    "output below nothing": (output_below_nothing, "none does not exist"),
    "output is a file": (output_is_a_file, "expected a folder"),
    "report over a mask": (report_over_a_mask, "it is the input"),
    "no engine": (missing_engine_of_folder, "does not exist"),
}


@pytest.mark.parametrize(("change", "words"), FOLDER_CASES.values(), ids=FOLDER_CASES.keys())
def test_what_concerns_a_whole_folder_is_one_line(
    refine: Command,
    toy_engine: Path,
    folder: Folder,
    files_of: Files,
    change: Callable[[dict[str, Any], Folder], None],
    words: str,
) -> None:
    options: dict[str, Any] = {
        "--engine": toy_engine,
        "--images": folder.images,
        "--masks": folder.masks,
        "--output": folder.output,
    }
    change(options, folder)
    before = files_of(folder.root)
    refused(refine(*[part for pair in options.items() for part in pair]), words)
    assert files_of(folder.root) == before
    assert not folder.output.exists()


def test_a_missing_onnxruntime_is_one_line_with_the_remedy(toy_engine: Path, scene: Scene, tmp_path: Path) -> None:
    program = "import sys; sys.modules['onnxruntime'] = None; from g4seg_trt.cli.refine import main; sys.exit(main())"
    arguments = ["--engine", toy_engine, "--image", scene.image, "--mask", scene.mask]
    arguments += ["--class-name", "disc", "--output", tmp_path / "out.png"]
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == ("g4seg-refine: error: onnxruntime is not installed: pip install 'g4seg-trt[cpu]'\n")
    assert not (tmp_path / "out.png").exists()


def test_control_characters_in_names_do_not_break_the_line(
    refine: Command, options: dict[str, Any], tmp_path: Path
) -> None:
    options["--image"] = tmp_path / "two\nlines\x1b[31m.png"
    refused(refine(*[part for pair in options.items() for part in pair]), "two lines")


def test_a_closed_pipe_is_no_traceback(toy_engine: Path, scene: Scene, tmp_path: Path) -> None:
    program = "import sys; from g4seg_trt.cli.refine import main; sys.exit(main())"
    arguments = ["--engine", toy_engine, "--image", scene.image, "--mask", scene.mask]
    arguments += ["--class-name", "disc", "--output", tmp_path / "out.png"]
    process = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if process.stdout is None or process.stderr is None:
        raise RuntimeError("no pipes")
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 1
    assert "Traceback" not in err
    assert "Exception ignored" not in err
    assert (tmp_path / "out.png").exists()


def test_a_bug_keeps_its_traceback(
    refine_here: Command, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("g4seg_trt.dataset.job.figures", broken)
    with pytest.raises(ZeroDivisionError):
        refine_here(*[part for pair in options.items() for part in pair])
