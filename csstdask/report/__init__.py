"""The page a person looks at."""

from csstdask.report.page import write_report

__all__ = ["write_report"]
