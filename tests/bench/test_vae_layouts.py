"""Every way to run the autoencoder gives the same picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from g4seg_bench import vae_layouts

pytest.importorskip("openvino", reason="needs the extra openvino")
pytest.importorskip("torch", reason="needs the extra export")


def test_the_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert vae_layouts.main(["--runs", "1", "--threads", "1", "--json", str(tmp_path / "record.json")]) == 0
    record = json.loads((tmp_path / "record.json").read_text("utf-8"))
    for network in ("vae_encoder", "vae_decoder"):
        for name, side in record["networks"][network].items():
            assert side["difference"] < (5e-2 if "bf16" in name else 1e-4), name
            assert side["median"] > 0
    printed = capsys.readouterr().out
    assert "| eager fp32, channels last |" in printed
    assert "| openvino fp32, norms by channel |" in printed
