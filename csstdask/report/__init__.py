"""The pages a person looks at: about a run, about a mock."""

from csstdask.report.mock_page import write_mock_report
from csstdask.report.page import write_report

__all__ = ["write_mock_report", "write_report"]
