"""One self-contained HTML page that shows what runs learned. It reads records, and training never calls it."""

from selfcorrect.report.html import MARK, build_report, write_report

__all__ = ["MARK", "build_report", "write_report"]
