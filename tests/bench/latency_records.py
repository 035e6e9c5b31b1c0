"""A latency record with everything in it, for the tests of reports and of the README's tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

STAGES = {
    "text": 0.28,
    "vae_encoder": 5.67,
    "unet": 4.42,
    "vae_decoder": 11.87,
    "image_encoder": 2.27,
    "correspondence": 0.012,
    "rest": 0.014,
}


def _side(times: float, role: str, backend: str, precision: str) -> dict[str, Any]:
    stages = {**STAGES, "total": sum(STAGES.values())}
    shares = (("min", 0.9), ("p20", 0.95), ("median", 1.0), ("p80", 1.1))
    return {
        "backend": backend,
        "compute_precision": precision,
        "device": "cpu",
        "role": role,
        "runs": [{stage: times * seconds for stage, seconds in stages.items()}],
        "stages": {
            stage: {name: times * seconds * share for name, share in shares} for stage, seconds in stages.items()
        },
        "masks_per_second": 1 / (times * stages["total"]),
        "peak_mb": 7612.3 * times,
        "device_mb": None,
        "floors": {"unet": 3.21, "total": 18.0, "rest": None},
        "shares": {"unet": 0.726, "total": 0.75, "rest": None},
        "cold_start": {
            kind: {"ready": [3.0 * (i + 1)], "mask": [40.0 + i, 42.0 + i]} for i, kind in enumerate(("first", "second"))
        },
        "difference": None,
    }


def latency_record() -> dict[str, Any]:
    """Two engines and a baseline."""
    sides = {
        "openvino bf16": _side(0.5, "engine", "openvino", "bf16"),
        "onnxruntime": _side(1.0, "engine", "onnxruntime", "fp32"),
        "eager": _side(1.5, "baseline", "torch", "fp32"),
    }
    sides["eager"]["cold_start"] = sides["eager"]["floors"] = sides["eager"]["shares"] = None
    return {
        "benchmark": "latency",
        "schema": 3,
        "environment": {"date": "2026-01-02T03:04:05Z", "processor": "Some CPU", "memory_mb": 8000, "gpu": None},
        "engine": {
            "model": "random:sd21-base",
            "manifest_sha256": "ab" * 32,
            "precision": "fp32",
            "square": 512,
            "form": "folded",
            "vae": None,
        },
        "settings": {"classes": 1, "batch_size": 1, "threads": 2, "warmup": 1, "runs": 3, "config": {"beta": 0.8}},
        "ceilings": {"gflops": {"fp32": 181.2, "bf16": 393.1}, "copy_gb_s": 24.5, "notes": ["fp16 left out: slow"]},
        "work": {
            "unet": {
                "convolution": 3.8e11,
                "product": 2.6e11,
                "attention": 1.27e11,
                "weight_bytes": 3_566_227_736,
                "activation_bytes": 1_782_678_016,
            }
        },
        "sides": sides,
        "ratios": {
            "openvino bf16": {"baseline": "eager", "pairs": [3.0, 2.9, 3.2], "median": 3.0, "min": 2.9, "max": 3.2},
            "onnxruntime": {"baseline": "eager", "pairs": [1.5, 1.4, 1.51], "median": 1.5, "min": 1.4, "max": 1.51},
        },
        "safe": True,
        "unsafe_reason": None,
        "noise": {"openvino bf16": 0.031, "onnxruntime": 0.02, "eager": 0.04},
        "scaling": {
            "classes": [
                {"side": "onnxruntime", "classes": 4, "runs": [83.0, 81.0, 84.5]},
                {"side": "onnxruntime", "classes": 1, "runs": [24.5]},
                {"side": "openvino bf16", "classes": 1, "runs": [12.3]},
            ],
            "batch": [{"side": "onnxruntime", "batch_size": 2, "runs": [45.0]}],
            "threads": [],
            "square": [{"side": "eager", "square": 768, "runs": [99.0]}],
            "slopes": {"classes": {"onnxruntime": 19.5, "openvino bf16": None}},
        },
    }


def save(path: Path, record: Any) -> Path:
    path.write_text(json.dumps(record), encoding="utf-8")
    return path


def cells(text: str) -> list[list[str]]:
    """The rows of all Markdown tables."""
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"]
