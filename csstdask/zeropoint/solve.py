"""The zero point of one exposure and detector, from its stars, and what is known without them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.errors import InputError
from csstdask.zeropoint.fit import COLOR_TERM, StarFit, fit_stars
from csstdask.zeropoint.result import Method, Stars, ZeroPoint

Float = npt.NDArray[np.float64]

J2000 = np.datetime64("2000-01-01T12:00:00", "us")
"""Origin of times in days."""
NO_MODEL = "none"
"""Name that asks for no network."""
_NEEDED = ("inst_mag", "inst_mag_err", "ref_mag", "ref_mag_err")
_WANTED = f"columns {', '.join(_NEEDED)} and, where known, color, x, y"


def solve(
    stars: Any,
    telemetry: Mapping[str, Any] | None = None,
    image: npt.ArrayLike | None = None,
    *,
    history: Mapping[str, Any] | None = None,
    time: Any = None,
    model: str | None = "default",
    nominal: float | None = None,
    shape: tuple[int, int] | None = None,
    degree: int = 1,
    color_term: tuple[float, float] = COLOR_TERM,
    device: str | None = None,
) -> ZeroPoint:
    """Return the zero point of one exposure and detector.

    Stars alone give it by a robust fit (`csstdask.zeropoint.fit`). Telemetry and earlier zero points give a prior, which
    is joined with the stars by precision and stands alone where there are none.

    Parameters
    ----------
    stars : table or mapping
        Columns ``inst_mag`` (-2.5 log10 of electron s-1), ``inst_mag_err``, ``ref_mag`` (AB), ``ref_mag_err`` [mag] and,
        where known, ``color`` [mag], ``x``, ``y`` (zero-based) [pixel]: a dict of arrays, pandas DataFrame, astropy or
        pyarrow Table. It may be empty. Missing and sentinel magnitudes (-9999, 99, 130) are left out; unknown errors
        count as typical ones; repeated rows count once.
    telemetry : mapping, optional
        Conditions of the exposure by name, as the model's card lists them under ``telemetry`` (units in
        `csstdask.zeropoint.features`); missing ones are allowed.
    image : array-like (256, 256), optional
        A patch of the frame [electron s-1], sky included; read by models that want one.
    history : mapping, optional
        Earlier zero points of the same detector: arrays ``time`` (datetime64) or ``days`` (since J2000), ``value``,
        ``sigma`` [mag], and columns of telemetry by name, where known. Entries that are not earlier than `time` are
        left out.
    time : datetime64, str, astropy Time or float, optional
        Begin of the exposure; a float is in days since J2000. Needed with `history`.
    model : str, optional
        ``default``, a name that ``csstdask models`` lists, or the path of a card; ``none``: no network.
    nominal : float, optional
        Zero point that the camera's description expects [mag]; default: that of the model's training.
    shape : (int, int), optional
        (y, x) of the frame; by default the least frame that holds the stars.
    degree : int
        Total degree of the spatial term F(x, y).
    color_term : (float, float)
        Prior of the colour term: mean and 1 sigma.
    device : str, optional
        ``cpu`` or ``cuda``.

    Returns
    -------
    ZeroPoint
        ``value``, ``sigma``, ``n_matched``, ``n_used``, ``chi2``, ``color_term``, ``color_term_err``, ``method``; value
        NaN and sigma inf if neither stars nor anything else tells it.

    Raises
    ------
    InputError
        If a column is missing, columns differ in length, or `history` comes without `time`.

    Examples
    --------
    >>> inst = np.linspace(-10, -6, 21)
    >>> error = np.full(21, 0.01)
    >>> zero_point = solve({"inst_mag": inst, "inst_mag_err": error, "ref_mag": inst + 25.5, "ref_mag_err": error})
    >>> print(round(zero_point.value, 3), zero_point.method)
    25.5 solve
    """
    table = star_columns(stars)
    options = {"degree": degree, "shape": shape, "color_term": color_term}
    alone = _fit(table, options)
    prior, source = _prior(table, telemetry, image, history, time, model, nominal, device)
    if prior is None:
        value = nominal if nominal is not None and not alone.solved else alone.value
        method: Method = "solve" if alone.solved else "nominal"
        sigma = NOMINAL_SIGMA if nominal is not None and not alone.solved else alone.sigma
        return ZeroPoint(value, sigma, method, alone, alone, None, table)
    joined = _fit(table, options, prior)
    method = "joined" if joined.solved else source
    return ZeroPoint(joined.value, joined.sigma, method, joined, alone, prior, table)


NOMINAL_SIGMA = 0.1
"""1 sigma of a zero point that only the camera's description gives [mag]."""


def star_columns(stars: Any) -> Stars:
    """Return the columns of a star table.

    Raises
    ------
    InputError
        If one is missing, is not numeric, or differs in length.
    """
    names = set(getattr(stars, "column_names", None) or getattr(stars, "colnames", None) or stars.keys())
    absent = [name for name in _NEEDED if name not in names]
    if absent:
        raise InputError("stars", f"no column {', '.join(absent)}", _WANTED)

    def column(name: str) -> Float | None:
        if name not in names:
            return None
        try:
            values = np.ma.filled(np.ma.asarray(stars[name], dtype=np.float64), np.nan)
        except (TypeError, ValueError):
            raise InputError("stars", f"column {name} without numbers", _WANTED) from None
        return np.atleast_1d(values)

    columns = {name: column(name) for name in (*_NEEDED, "color", "x", "y")}
    lengths = {len(values) for values in columns.values() if values is not None}
    if len(lengths) > 1:
        raise InputError("stars", f"columns of lengths {sorted(lengths)}", "one row a star")
    if columns["x"] is None or columns["y"] is None:
        columns["x"] = columns["y"] = None
    return Stars(**columns)  # type: ignore[arg-type]


def days_of(time: Any) -> float:
    """Return a time in days since J2000; NaN for None.

    Parameters
    ----------
    time : datetime64, str, astropy Time, float or None

    Examples
    --------
    >>> days_of("2000-01-02T12:00:00")
    1.0
    """
    if time is None:
        return np.nan
    if isinstance(time, int | float | np.floating | np.integer):
        return float(time)
    if hasattr(time, "datetime64"):  # astropy
        time = time.datetime64
    return float((np.datetime64(time, "us") - J2000) / np.timedelta64(1, "D"))


def _fit(table: Stars, options: Mapping[str, Any], prior: tuple[float, float] | None = None) -> StarFit:
    return fit_stars(
        table.inst_mag, table.inst_mag_err, table.ref_mag, table.ref_mag_err, table.color, table.x, table.y,
        prior=prior, **options,
    )  # fmt: skip
