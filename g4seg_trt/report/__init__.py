"""One self-contained HTML page that shows what a run over many images did."""

from g4seg_trt.report.page import write_report
from g4seg_trt.report.pictures import Pictures, draw_pictures
from g4seg_trt.report.rows import ReportRow, ReportRows

__all__ = ["Pictures", "ReportRow", "ReportRows", "draw_pictures", "write_report"]
