"""What a process took, whoever started it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from g4seg_bench.processes import available_mb, run_measured
from g4seg_engine.errors import G4SegError


def test_the_peak_is_the_process_s_own() -> None:
    """Linux would pass on the peak of a parent that starts it directly."""
    held = bytearray(b"x") * 300_000_000
    small = run_measured([sys.executable, "-c", ""])
    large = run_measured([sys.executable, "-c", "held = bytearray(b'x') * 120_000_000"])
    assert len(held) > 1e6 * large.peak_mb
    assert 1 < small.peak_mb < 100
    assert 110 < large.peak_mb - small.peak_mb < 130


def test_time_is_that_of_the_process() -> None:
    usage = run_measured([sys.executable, "-c", "import time; time.sleep(0.3)"])
    assert usage.seconds >= 0.3
    assert 0 < usage.cpu_seconds < usage.seconds


def test_a_failure_is_an_error_with_what_was_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(G4SegError, match=r"exit code: 3"):
        run_measured([sys.executable, "-c", "import sys; print('why', file=sys.stderr); sys.exit(3)"])
    assert capsys.readouterr().err == "why\n"
    with pytest.raises(G4SegError, match="did not start"):
        run_measured([str(Path(sys.executable).parent / "no-such-program")])


def test_available_memory(tmp_path: Path) -> None:
    info = tmp_path / "meminfo"
    assert available_mb(info) is None
    info.write_text("MemTotal:  2000 kB\nMemAvailable:    1000 kB\n", encoding="ascii")
    assert available_mb(info) == pytest.approx(1.024)
    info.write_text("MemTotal:  2000 kB\n", encoding="ascii")
    assert available_mb(info) is None
