"""The one place that holds the version of g4seg-trt (pyproject.toml reads it from here)."""

from __future__ import annotations

VERSION = "0.1.0"
