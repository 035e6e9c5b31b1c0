"""make bench: what it would run, what it says it cannot, and that its command lines are understood."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from g4seg_bench import everything
from g4seg_bench.everything import Step, main, small_steps, true_size_steps


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []

    def note(step: Step) -> bool:
        names.append(step.name)
        return step.name != "folder"

    monkeypatch.setattr(everything, "_run", note)
    return names


def test_the_engine_is_built_before_it_is_measured(tmp_path: Path) -> None:
    steps = list(true_size_steps(tmp_path, tmp_path, 3))
    names = [step.name for step in steps]
    assert names.index("engine") < names.index("latency_sd21-base") < names.index("engine_taesd")
    assert len(set(names)) == len(names)
    (tmp_path / "sd21").mkdir()
    names = [step.name for step in true_size_steps(tmp_path, tmp_path, 3)]
    assert "engine" not in names
    assert "engine_taesd" in names


def test_too_little_memory_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(everything, "available_mb", lambda: 4000.0)
    steps = true_size_steps(tmp_path, tmp_path, 3)
    assert {step.unable for step in steps} == {"4000 MB of memory are free, 19000 are needed"}


def test_what_is_not_installed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(everything, "find_spec", lambda _: None)
    monkeypatch.setattr(everything, "driver_cuda", lambda: None)
    unable = {step.name: step.unable for step in small_steps(tmp_path)}
    assert "g4seg-trt[openvino]" in unable["accuracy"]
    assert "no NVIDIA driver" in unable["gpu"]
    assert unable["quality"] == ""


def test_one_that_fails_does_not_end_the_others(ran: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--small", "--only", "commands", "--only", "folder", "--only", "quality"]) == 3
    assert ran == ["folder", "commands", "quality"]
    assert "failed: folder" in capsys.readouterr().err


def test_an_unknown_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--only", "abacus"])
    assert "--only abacus: choose from folder, bookkeeping, commands" in capsys.readouterr().err


def test_every_command_line_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import import_module

    def parsed_only(parser: Any, _: Any, arguments: Any) -> int:
        parser.parse_args(arguments)
        return 0

    steps = [*small_steps(tmp_path), *true_size_steps(tmp_path, tmp_path, 3)]
    tried = 0
    for step in steps:
        if step.arguments[0] == "-m" and step.name != "quality":
            name = "g4seg_bench.cli" if step.arguments[1] == "g4seg_bench" else step.arguments[1]
            module = import_module(name)
            monkeypatch.setattr(module, "run", parsed_only)
            assert module.main(list(step.arguments[2:])) == 0, step.name
            tried += 1
    assert tried >= 12


def test_a_step_runs_in_a_process_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert everything._run(Step("good", ("-c", "pass")))
    assert not everything._run(Step("bad", ("-c", "raise SystemExit(1)")))
    given = Step(
        "given", ("-c", "import os; raise SystemExit(os.environ['HERE'] != 'yes')"), environment={"HERE": "yes"}
    )
    assert everything._run(given)
    assert everything._run(Step("unable", ("-c", "raise SystemExit(1)"), "it cannot"))
    assert "not run: unable: it cannot" in capsys.readouterr().err
