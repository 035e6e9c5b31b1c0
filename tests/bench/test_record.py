"""What a record says about machine and revision, and how a record is read back."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from g4seg_bench import record as module
from g4seg_bench.record import CPU_FLAGS, environment, git_revision, read_json, shown, write_record
from g4seg_engine.errors import EngineError, G4SegError


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=someone", "-c", "user.email=someone@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_revision_of_a_tracked_file(tmp_path: Path) -> None:
    file = tmp_path / "package" / "module.py"
    file.parent.mkdir()
    file.write_text("one\n", encoding="ascii")
    assert git_revision(file) is None, "outside a checkout"
    git(tmp_path, "init", "--quiet")
    assert git_revision(file) is None, "before the first commit"
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "one")
    commit = git(tmp_path, "rev-parse", "HEAD")
    clean = git_revision(file)
    assert clean is not None and len(clean) >= 7 and commit.startswith(clean)
    stranger = tmp_path / "package" / "stranger.py"
    stranger.write_text("", encoding="ascii")
    assert git_revision(file) == clean, "files that git does not track change nothing"
    assert git_revision(stranger) is None, "a package installed inside somebody's repository is not that repository's"
    file.write_text("two\n", encoding="ascii")
    assert git_revision(file) == f"{clean}+"


def test_without_git_there_is_no_revision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_revision(Path(__file__)) is None


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "flags", lambda: frozenset({"avx2", "amx_bf16", "fpu"}))
    found = environment()
    assert found["cpu_flags"] == ["avx2", "amx_bf16"]
    assert set(found["cpu_flags"]) < set(CPU_FLAGS)
    assert found["memory_mb"] is None or 100 < found["memory_mb"] < 1e9
    assert {"numpy", "g4seg-trt"} <= set(found["packages"])
    assert str(Path.home()) not in json.dumps(found)


def test_a_gpu_is_named_and_one_that_cannot_be_used_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    from g4seg_engine.cuda_device import CudaDevice

    monkeypatch.setattr(module, "driver_cuda", lambda: (12, 8))
    monkeypatch.setattr(
        module, "cuda_device", lambda: CudaDevice(0, "NVIDIA X", "9.0", 80_000_000_000, "570.1", "12.8")
    )
    assert environment()["gpu"] == {"name": "NVIDIA X", "capability": "9.0", "driver": "570.1", "memory_mb": 80000}

    def refuse() -> None:
        raise EngineError("the driver is too old")

    monkeypatch.setattr(module, "cuda_device", refuse)
    assert environment()["gpu"] is None
    monkeypatch.setattr(module, "driver_cuda", lambda: None)
    monkeypatch.setattr(module, "cuda_device", lambda: pytest.fail("PyTorch was loaded without a driver"))
    assert environment()["gpu"] is None


def test_a_record_is_read_back(tmp_path: Path) -> None:
    file = tmp_path / "new" / "record.json"
    write_record(file, "latency", {"seconds": [1.5]})
    found = read_json(file)
    assert (found["benchmark"], found["seconds"]) == ("latency", [1.5])
    assert found["environment"]["cores"] >= 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is damaged"),
        (b'{"a": 1', "is damaged"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b"\xff\xfe\x00", "is damaged"),
        (b"[1, 2]", r"is \[1, 2\], expected a JSON object"),
        (b'{"a": "\\ud800"}', "half a character"),
        (b'{"a":' * 30 + b"1" + b"}" * 30, "nested more than 20 deep"),
        (b'{"a":' * 100000 + b"1" + b"}" * 100000, "too deeply nested"),
    ],
)
def test_what_is_no_record_is_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "record.json"
    file.write_bytes(content)
    with pytest.raises(G4SegError, match=said) as caught:
        read_json(file)
    assert str(caught.value).startswith(f"record {file} ")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(G4SegError, match="cannot be read: No such file"):
        read_json(tmp_path / "none.json")
    with pytest.raises(G4SegError, match="cannot be read: Is a directory"):
        read_json(tmp_path)


def test_values_are_shown_short() -> None:
    assert shown("a\nb") == "'a\\nb'"
    assert len(shown(list(range(1000)))) == 60
