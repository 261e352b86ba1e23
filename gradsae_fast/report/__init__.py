"""The audit of a score store: static pages to look at and to pass on, without a network, a script or torch."""

from gradsae_fast.report.write import ReportSummary, write_report

__all__ = ["ReportSummary", "write_report"]
