"""Write tables and figures of the evaluation on tables of zero points."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from csstdask.core.errors import InputError
from csstdask.core.plotting import pyplot
from csstdask.evaluation.io import markdown_header, markdown_row
from csstdask.metrics.zeropoint import COVERAGE_LEVELS

COLUMNS = ("RMSE", "MAE", "MAD", "failures", "RMSE clear", "MAE clear", "MAD clear", "68 %", "95 %")


def report_lines(result: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of ``zeropoint_table.md`` from the content of ``zeropoint_table.json``."""
    yield f"# Zero points of {result['table']['name']}"
    for name, campaign in result["campaigns"].items():
        yield from markdown_header(f"{name}, {campaign['n_test']} test exposures", COLUMNS)
        for method, scores in campaign["methods"].items():
            yield markdown_row(f"{method}: {scores['label']}", _row(scores))
        yield from markdown_header(f"{name}, MAE on the same exposures", ("split by nights", "split by rows"))
        for method, leaking in campaign.get("row_split", {}).items():
            yield markdown_row(method, [leaking[split]["all"]["mae"] for split in ("nights", "rows")])
        yield from markdown_header(f"{name}, difference of MAE", ("mag", "95 % from", "to", "relative"))
        for comparison, paired in campaign["paired"].items():
            numbers = [paired["difference"], *paired["interval_95"], paired["relative"]]
            yield markdown_row(comparison.replace("_", " "), numbers)
    for name, transfer in result["transfer"].items():
        for nights, scores in transfer["nights"].items():
            yield from markdown_header(f"{name} after {nights} own nights and all of {transfer['from']}", COLUMNS)
            for method, numbers in scores["methods"].items():
                yield markdown_row(method, _row(numbers))
    yield ""
    yield "Errors in mag; clear: residual of the extinction fit above -0.1 mag, a diagnostic."


def _row(scores: dict[str, Any]) -> list[float]:
    """Return the numbers of `COLUMNS`."""
    every, clear = scores["all"], scores["clear"]
    return [
        *(every[key] for key in ("rmse", "mae", "mad", "failures")),
        *(clear[key] for key in ("rmse", "mae", "mad")),
        scores["coverage_68"],
        scores["coverage_95"],
    ]


def draw_figures(result: dict[str, Any], to: Path, *, on_progress: Callable[[str], None]) -> None:
    """Draw mean absolute errors by method and coverage by quartile; without matplotlib, report that there are none."""
    try:
        plt = pyplot()
    except InputError as error:
        on_progress(f"no figures: {error}")
        return
    for name, campaign in result["campaigns"].items():
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
        methods = list(campaign["methods"])
        left.barh(
            methods, [campaign["methods"][m]["all"]["mae"] for m in methods], color="0.6", label="split by nights"
        )
        leaking = campaign.get("row_split", {})
        left.plot(
            [leaking[m]["rows"]["all"]["mae"] for m in leaking], list(leaking), "k|", ms=14, label="split by rows"
        )
        left.invert_yaxis()
        left.set_xlabel("mean absolute error [mag]")
        left.set_title(f"{name}, {campaign['n_test']} exposures")
        left.legend()
        for method in ("previous", "trees", "ours"):
            for key, marker in (("coverage_68", "o"), ("coverage_95", "s")):
                measured = [quartile[key] for quartile in campaign["methods"][method]["quartiles"]]
                right.plot(range(1, len(measured) + 1), measured, marker=marker, label=f"{method}, {key[-2:]} %")
        for nominal, _ in COVERAGE_LEVELS.values():
            right.axhline(nominal, color="0.5", lw=0.8)
        right.set(xlabel="quartile of the predicted scatter", ylabel="fraction within the interval", xticks=range(1, 5))
        right.legend(fontsize="small")
        figure.savefig(to / f"zeropoint-{name}.png", dpi=110)
        plt.close(figure)
