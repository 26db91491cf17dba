"""What a run did, as a page and a picture.

Read `timeline` (what is noted), `summary` and `draw`, then `page`.
"""

from fastvideo_lightning.report.files import check_report_path, write_report
from fastvideo_lightning.report.summary import summary_lines
from fastvideo_lightning.report.timeline import Sample, Span, Timeline

__all__ = [
    "Sample",
    "Span",
    "Timeline",
    "check_report_path",
    "summary_lines",
    "write_report",
]
