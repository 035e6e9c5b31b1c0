"""How good predictions are against a ground truth: mean IoU over a set, boundaries, and what a refinement gained."""

from __future__ import annotations

from g4seg_trt.evaluate.boundary import boundary_accuracy, boundary_f
from g4seg_trt.evaluate.confusion import MEANS, LabelSpace
from g4seg_trt.evaluate.named import NamedEvaluation
from g4seg_trt.evaluate.sets import SetEvaluation
from g4seg_trt.evaluate.sweep import SweepEvaluation, parse_sweep
from g4seg_trt.evaluate.text import comparison_lines, report_lines

__all__ = [
    "MEANS",
    "LabelSpace",
    "NamedEvaluation",
    "SetEvaluation",
    "SweepEvaluation",
    "boundary_accuracy",
    "boundary_f",
    "comparison_lines",
    "parse_sweep",
    "report_lines",
]
