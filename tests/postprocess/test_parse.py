"""Names of post-processings, chains of them, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from g4seg_trt.errors import ConfigError, ImageError, MaskError
from g4seg_trt.postprocess import PROCESSES, DenseCrf, Pamr, PostChain, PostProcess, parse_post
from g4seg_trt.update import BackgroundRule

ROOT = Path(__file__).parents[2]
HALF = BackgroundRule("constant", 0.5)
IMAGE = np.random.default_rng(0).integers(0, 256, (9, 14, 3)).astype(np.uint8)
MASKS = np.random.default_rng(1).random((2, 9, 14), dtype=np.float32)


class Recorder(PostProcess):
    """Multiplies by a factor and remembers what it was given."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.given: list[tuple[float, BackgroundRule, object]] = []

    @property
    def name(self) -> str:
        return f"times:{self.factor}"

    def parameters(self) -> dict[str, object]:
        return {"factor": self.factor}

    def check(self) -> None: ...

    def _process(self, _, probabilities, rule, background):  # type: ignore[no-untyped-def]
        self.given.append((float(probabilities.max()), rule, background))
        return (probabilities * np.float32(self.factor)).astype(np.float32)


@pytest.mark.parametrize("name", [name for name in PROCESSES if not name.startswith("cascadepsp")])
def test_names_are_found_and_come_back(name: str) -> None:
    if name.startswith("crf"):
        pytest.importorskip("pydensecrf", reason="the extra crf is not installed")
    post = parse_post(name)
    assert post.name.startswith(name)
    assert parse_post(post.name).name == post.name


def test_every_process_knows_its_name() -> None:
    for name, make in PROCESSES.items():
        assert make().name == ("crf:clip-es" if name == "crf" else name)


def test_parameters_are_what_json_gives_back_and_those_of_a_chain_are_told_apart() -> None:
    for name, make in PROCESSES.items():
        if not name.startswith("cascadepsp"):  # which hashes its weights
            parameters = make().parameters()
            assert parameters
            assert json.loads(json.dumps(parameters)) == parameters
    assert DenseCrf("irn").parameters() != DenseCrf("psa").parameters()
    assert PostChain([Recorder(0.5), Pamr(), Recorder(0.25)]).parameters() == {
        "1 factor": 0.5,
        **{f"2 {name}": value for name, value in Pamr().parameters().items()},
        "3 factor": 0.25,
    }


def test_chains() -> None:
    pytest.importorskip("pydensecrf", reason="the extra crf is not installed")
    post = parse_post("crf:irn, pamr")
    assert post.name == "crf:irn,pamr"
    expected = Pamr().apply(IMAGE, DenseCrf("irn").apply(IMAGE, MASKS, HALF), HALF)
    assert (post.apply(IMAGE, MASKS, HALF) == expected).all()
    assert (parse_post("pamr,crf:irn").apply(IMAGE, MASKS, HALF) != expected).any()


def test_a_chain_hands_on_result_rule_and_background() -> None:
    steps = [Recorder(0.5), Recorder(0.25)]
    background = np.zeros((9, 14), dtype=np.float32)
    top = float(MASKS.max())
    chain = PostChain(steps)
    channel = BackgroundRule("channel", 0.0)
    result = chain.apply(IMAGE, MASKS, channel, background)
    np.testing.assert_allclose(result, MASKS / 8)
    assert [step.given for step in steps] == [[(top, channel, background)], [(top / 2, channel, background)]]
    chain.apply(IMAGE, MASKS, HALF, background)
    assert steps[1].given[-1][2] is None, "only the rule channel has a background"


@pytest.mark.parametrize("text", ["", "crf:voc", "densecrf", "crf,", "pamr:10", "CRF", "crf;pamr"])
def test_unknown_names_are_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_post(text)
    message = str(caught.value)
    assert "\n" not in message
    assert repr(text.rpartition(",")[2]) in message
    assert "crf:clip-es, crf:psa, crf:irn, cascadepsp, cascadepsp:fast, pamr; several joined by commas" in message


@pytest.mark.parametrize(
    ("image", "masks", "background", "error", "message"),
    [
        (IMAGE[:8], MASKS, None, MaskError, "probabilities: 14x9 pixels, the image is 14x8"),
        (IMAGE.astype(np.float32), MASKS, None, ImageError, "expected uint8"),
        (IMAGE, MASKS[0], None, MaskError, r"shape \[9, 14\], expected float32 \[classes, height, width\]"),
        (IMAGE, MASKS.astype(np.float64), None, MaskError, "probabilities: float64"),
        (IMAGE, MASKS * 255, None, MaskError, "probabilities: values from .* expected 0 to 1"),
        (IMAGE, MASKS * np.float32(np.nan), None, MaskError, "values from nan"),
        (IMAGE, MASKS, None, ConfigError, "channel needs a mask"),
        (IMAGE, MASKS, MASKS[0, :, :3], MaskError, "background: 3x9 pixels, the image is 14x9"),
        (IMAGE, MASKS, MASKS, MaskError, r"background: .* expected float32 \[height, width\]"),
        (IMAGE, MASKS, MASKS[0] - 1, MaskError, "background: values"),
    ],
)
def test_wrong_arrays_are_refused(image, masks, background, error, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message) as caught:
        parse_post("pamr").apply(image, masks, BackgroundRule("channel", 0.0), background)
    assert "\n" not in str(caught.value)


def test_no_class_gives_an_array_of_its_own() -> None:
    empty = np.zeros((0, 9, 14), dtype=np.float32)
    result = parse_post("pamr,pamr").apply(IMAGE, empty, HALF)
    assert result.shape == (0, 9, 14)
    assert result is not empty


WITHOUT = """
import sys
sys.path[:0] = {paths!r}
from g4seg_trt.errors import MissingExtraError
from g4seg_trt.postprocess import parse_post
parse_post("pamr")
try:
    parse_post({text!r})
except MissingExtraError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("text", "package", "extra"),
    [
        ("pamr,crf:psa", "pydensecrf2", "crf"),
        ("cascadepsp", "segmentation_refinement", "cascadepsp"),
    ],
)
def test_a_missing_extra_is_one_line_with_the_remedy(tmp_path: Path, text: str, package: str, extra: str) -> None:
    """In an interpreter that has numpy and Pillow and no other package."""
    site = Path(np.__file__).parents[1]
    for name in ("numpy", "numpy.libs", "PIL", "pillow.libs"):
        if (site / name).exists():
            (tmp_path / name).symlink_to(site / name)
    program = WITHOUT.format(paths=[str(ROOT), str(ROOT / "engine"), str(tmp_path)], text=text)
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{package} is not installed: pip install 'g4seg-trt[{extra}]'\n"


def test_importing_it_loads_nothing_but_numpy_and_pillow() -> None:
    program = "import g4seg_trt.postprocess, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "numpy" in done.stdout.split()
    assert not set(done.stdout.split()) & {"torch", "pydensecrf", "segmentation_refinement", "scipy", "onnxruntime"}
