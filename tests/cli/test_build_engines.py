"""g4seg-build-engines: what it asks of the export, what it reports, and its errors."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from g4seg_engine.compilation import TensorRTCompiler
from g4seg_engine.manifest import load_engine
from g4seg_trt.cli.build_engines import main
from g4seg_trt.errors import ConfigError, G4SegError

if TYPE_CHECKING:
    from tests.cli.conftest import Done

Run = Callable[..., "Done"]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, toy_engine: Path) -> list[dict[str, Any]]:
    """Stand in for the export; what it was asked for."""
    made: list[dict[str, Any]] = []

    def export_engine(model: str, output: Path, **options: Any) -> Any:
        made.append({"model": model, "output": output, **options})
        if model == "bad":
            raise G4SegError("no such model\nat all")
        return load_engine(toy_engine)

    module = types.ModuleType("g4seg_export.engine")
    module.export_engine = export_engine  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "g4seg_export.engine", module)
    return made


def test_options_reach_the_export(
    calls: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(
        [
            *("--model", "random:sd21", "--output", str(tmp_path / "out"), "--form", "dense"),
            *("--image-encoder", "some/clip", "--dense-mode", "csa", "--revision", "abc", "--overwrite"),
            *("--precision", "fp16", "--io", "float16", "--attention", "operator", "--square", "384"),
            *("--vae", "random:taesd", "--vae-encoder", "some/vae"),
        ]
    )
    assert code == 0
    check = calls[0].pop("check_recommended")
    check({"beta": 0.5, "certainty_filter": None})
    with pytest.raises(ConfigError, match=r"random:sd21: g4seg.json: recommended: beta is 3, allowed"):
        check({"beta": 3})
    with pytest.raises(ConfigError, match=r"g4seg.json: recommended: unknown refine setting 'mask_threshold'"):
        check({"mask_threshold": 0.5})
    assert calls == [
        {
            "model": "random:sd21",
            "output": tmp_path / "out",
            "form": "dense",
            "attention": "operator",
            "precision": "fp16",
            "io_dtype": "float16",
            "image_encoder": "some/clip",
            "dense_mode": "csa",
            "revision": "abc",
            "vae_encoder": "some/vae",
            "vae_decoder": "random:taesd",
            "square": 384,
            "overwrite": True,
            "compiler": None,
        }
    ]
    out = capsys.readouterr().out
    assert "unet: 0.0 MB" in out
    assert f"engine: {tmp_path / 'out'}" in out


def test_defaults_leave_the_choice_to_the_source(calls: list[dict[str, Any]], tmp_path: Path) -> None:
    assert main(["--model", "tiny", "--output", str(tmp_path / "out")]) == 0
    assert (calls[0]["form"], calls[0]["attention"]) == ("folded", "products")
    assert (calls[0]["precision"], calls[0]["io_dtype"]) == ("fp32", "float32")
    assert calls[0]["image_encoder"] is calls[0]["dense_mode"] is calls[0]["revision"] is None
    assert calls[0]["overwrite"] is False


def test_tensorrt_options_reach_its_compiler(calls: list[dict[str, Any]], tmp_path: Path) -> None:
    command = ["--model", "tiny", "--output", str(tmp_path / "out"), "--backend", "tensorrt"]
    assert main(command) == 0
    assert calls[0]["precision"] == "fp16"
    assert calls[0]["compiler"] == TensorRTCompiler((1, 2, 4, 8), earlier=tmp_path / "out")
    more = ["--precision", "bf16", "--batch-sizes", "1,3", "--workspace", "4", "--optimization-level", "5"]
    assert main([*command, *more, "--timing-cache", "times"]) == 0
    assert calls[1]["precision"] == "bf16"
    assert calls[1]["compiler"] == TensorRTCompiler((1, 3), 4.0, 5, Path("times"), tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--batch-sizes", "1"), "--batch-sizes is given with --backend onnxruntime"),
        (("--workspace", "1"), "--workspace is given with --backend onnxruntime"),
        (("--optimization-level", "0"), "--optimization-level is given with --backend onnxruntime"),
        (("--timing-cache", "x"), "--timing-cache is given with --backend onnxruntime"),
        (("--backend", "tensorrt", "--batch-sizes", "0"), "batch sizes are '0', allowed"),
        (("--backend", "tensorrt", "--batch-sizes", "2,2"), "batch sizes are '2,2', allowed"),
    ],
)
def test_compiler_options_that_do_not_fit(
    calls: list[dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    words: str,
) -> None:
    assert main(["--model", "tiny", "--output", str(tmp_path / "out"), *options]) == 1
    assert words in capsys.readouterr().err
    assert not calls


def test_openvino_is_not_built_in_bfloat16(
    calls: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--output", str(tmp_path / "out"), "--backend", "openvino", "--precision", "bf16"]
    assert main(["--model", "tiny", *options]) == 1
    err = capsys.readouterr().err
    assert "--precision bf16 is given with --backend openvino, allowed: fp32 or fp16" in err
    assert err.count("\n") == 1
    assert not calls, "an export takes minutes"


@pytest.mark.usefixtures("calls")
def test_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "tiny", "--output", str(tmp_path / "out"), "--json", "-"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["model"]["id"] == "toy"
    assert report["networks"]["unet"]["bytes"] > 0
    assert report["networks"]["unet"]["parity"]["max_abs"] == 0
    assert main(["--model", "tiny", "--output", "out", "--json", str(tmp_path / "r.json")]) == 0
    assert json.loads((tmp_path / "r.json").read_text("utf-8"))["engine"] == "out"


@pytest.mark.parametrize(
    ("model", "output", "words"),
    [
        ("bad", "out", "no such model at all"),
        ("tiny", "none/out", "none does not exist"),
        ("tiny", "file", "expected a folder"),
    ],
)
def test_errors_are_one_line(
    calls: list[dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    model: str,
    output: str,
    words: str,
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["--model", model, "--output", str(tmp_path / output)]) == 1
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1
    assert len(calls) == (model == "bad"), "the place is checked before the work"


@pytest.mark.parametrize(
    "option",
    [
        ("--backend", "abacus"),
        ("--precision", "fp7"),
        ("--io", "bfloat16"),
        ("--form", "round"),
        ("--attention", "fused"),
    ],
)
def test_unknown_choices_are_wrong_usage(option: tuple[str, str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--model", "tiny", "--output", "out", *option])
    assert stop.value.code == 2


@pytest.mark.parametrize("loud", [False, True])
def test_the_range_check_warns_and_goes_on(
    calls: list[dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    loud: bool,
) -> None:
    from g4seg_export import fp16_range

    above = {"mid.attn (bmm)": 40000.0} if loud else {}
    asked: list[Any] = []

    def check(model: str, images: Path, **options: Any) -> fp16_range.RangeReport:
        asked.append((model, images, options))
        assert not calls, "the check comes before the export"
        return fp16_range.RangeReport(2, {"unet": fp16_range.NetworkRange(40000.0, "mid.attn (bmm)", above)})

    monkeypatch.setattr(fp16_range, "check_fp16_range", check)
    target = str(tmp_path / "report.json")
    options = ["--form", "dense", "--check-fp16-range", "photos", "--json", target, "--vae", "random:taesd"]
    assert main(["--model", "tiny", "--output", str(tmp_path / "out"), *options]) == 0
    expected = {
        "form": "dense",
        "image_encoder": None,
        "dense_mode": None,
        "revision": None,
        "vae_encoder": "random:taesd",
        "vae_decoder": "random:taesd",
        "square": None,
    }
    assert asked == [("tiny", Path("photos"), expected)]
    assert len(calls) == 1
    captured = capsys.readouterr()
    assert "unet: largest magnitude 4e+04 at mid.attn (bmm)" in captured.out
    assert ("unet: 4e+04 at mid.attn (bmm), float16 ends at 65504" in captured.out) == loud
    assert ("build with --precision bf16" in captured.err) == loud
    found = json.loads(Path(target).read_text("utf-8"))["fp16_range"]
    assert (found["images"], found["limit"]) == (2, 32752)
    assert found["networks"]["unet"]["above"] == [{"tensor": name, "magnitude": size} for name, size in above.items()]


def test_the_range_is_not_checked_when_there_is_no_place_for_the_engine(
    calls: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("g4seg_export.fp16_range.check_fp16_range", lambda *_, **__: pytest.fail("checked"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("")
    assert main(["--model", "tiny", "--output", str(tmp_path / "out"), "--check-fp16-range", "photos"]) == 1
    assert "is not empty and no engine directory" in capsys.readouterr().err
    assert not calls


@pytest.mark.parametrize("package", ["torch", "diffusers", "onnxscript"])
def test_a_missing_extra_is_one_line_with_the_remedy(tmp_path: Path, package: str) -> None:
    blocked = (
        f"import sys; sys.modules['{package}'] = None; from g4seg_trt.cli.build_engines import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", blocked, "--model", "tiny", "--output", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    expected = f"g4seg-build-engines: error: {package} is not installed: pip install 'g4seg-trt[export]'\n"
    assert done.stderr == expected


@pytest.mark.parametrize("place", ["out", "out/manifest.json", "out/report.json"])
def test_a_report_never_lands_in_the_engine(
    calls: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    if "/" in place:
        (tmp_path / "out").mkdir()
    code = main(["--model", "tiny", "--output", str(tmp_path / "out"), "--json", str(tmp_path / place), "--overwrite"])
    assert code == 1
    assert "lies in the engine directory" in capsys.readouterr().err
    assert not calls
