"""Determine the zero point of one exposure and detector, from its stars and from what is known without them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from csstdask.core.constants import days_since_j2000
from csstdask.core.errors import InputError
from csstdask.nn.card import ModelCard
from csstdask.nn.models import NO_MODEL
from csstdask.zeropoint.fit_stars import COLOR_TERM, StarFit, fit_stars
from csstdask.zeropoint.memory import build_memory
from csstdask.zeropoint.photometry import mask_bad_errors, mask_bad_magnitudes
from csstdask.zeropoint.prior import (
    NOMINAL_SIGMA,
    PriorInputs,
    build_star_lists,
    fallback_prior,
    find_prior_card,
    predict_prior,
)
from csstdask.zeropoint.result import Method, Stars, ZeroPoint

Float = npt.NDArray[np.float64]

MEMORY_LENGTH = 16
"""Largest number of earlier zero points that are used; a model reads as many as its card says."""
_REQUIRED = ("inst_mag", "inst_mag_err", "ref_mag", "ref_mag_err")
_WANTED = f"columns {', '.join(_REQUIRED)} and, where known, color, x, y"


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
    """Determine the zero point of one exposure and detector.

    The stars give it by a robust fit (`csstdask.zeropoint.fit_stars`). Telemetry and earlier zero points give a prior,
    which is combined with the stars by precision, and which is the result if there are no stars.

    Parameters
    ----------
    stars : table or mapping
        Columns ``inst_mag`` (-2.5 log10 of electron s-1), ``inst_mag_err``, ``ref_mag`` (AB), ``ref_mag_err`` [mag]
        and, where known, ``color`` [mag], ``x``, ``y`` (zero-based) [pixel]: a dict of arrays, pandas DataFrame,
        astropy or pyarrow Table. It may be empty. Missing and sentinel magnitudes (-9999, 99, 130) are dropped;
        unknown errors are replaced by typical ones; repeated rows count once.
    telemetry : mapping, optional
        Conditions of the exposure by name, as the model's card lists them under ``telemetry`` (units in
        `csstdask.zeropoint.prior.TELEMETRY_NAMES`). Names may be missing.
    image : array-like (256, 256), optional
        A patch of the frame [electron s-1], sky included. Only some models read it.
    history : mapping, optional
        Earlier zero points of the same detector: arrays ``time`` (datetime64) or ``days`` (since J2000), ``value``,
        ``sigma`` [mag] and, where known, columns of telemetry by name. Entries that are not earlier than `time` are
        dropped.
    time : datetime64, str, astropy Time or float, optional
        Start of the exposure; a float is in days since J2000. Required with `history`.
    model : str, optional
        ``default``, a name that ``csstdask models`` lists, or the path of a card; ``none``: no network.
    nominal : float, optional
        Nominal zero point in the camera's description [mag]; by default estimated from `history`. Without either,
        telemetry cannot be used.
    shape : (int, int), optional
        (y, x) of the frame [pixel]; by default the smallest frame that contains the stars.
    degree : int
        Total degree of the spatial term F(x, y).
    color_term : (float, float)
        Prior of the colour term: mean and 1 sigma [mag / mag].
    device : str, optional
        ``cpu`` or ``cuda``.

    Returns
    -------
    ZeroPoint
        ``value``, ``sigma``, ``n_matched``, ``n_used``, ``chi2``, ``color_term``, ``color_term_err``, ``method``. The
        value is NaN and sigma inf if nothing determines it.

    Raises
    ------
    InputError
        If a column is missing, columns differ in length, `history` comes without `time`, a name of telemetry is
        unknown to the model, or the model reads the level of the stars.

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
    solved = _fit(table, options)
    use_network = model is not None and model != NO_MODEL
    card = find_prior_card(str(model)) if use_network else None
    inputs = _prior_inputs(table, solved.shape, telemetry, image, history, time, nominal, card)
    prior, prior_method = _predict(inputs, str(model) if use_network else None, device)
    if prior is not None:
        joined = _fit(table, options, prior)
        method = "joined" if joined.solved else prior_method
        return ZeroPoint(joined.value, joined.sigma, method, joined, solved, prior, table)
    if solved.solved or nominal is None:
        method = "solve" if solved.solved else "nominal"
        return ZeroPoint(solved.value, solved.sigma, method, solved, solved, None, table)
    return ZeroPoint(nominal, NOMINAL_SIGMA, "nominal", solved, solved, None, table)


def star_columns(stars: Any) -> Stars:
    """Convert a star table to columns.

    Parameters
    ----------
    stars : table or mapping
        As for `solve`.

    Raises
    ------
    InputError
        If a required column is missing, is not numeric, or differs in length.
    """
    names = set(getattr(stars, "column_names", None) or getattr(stars, "colnames", None) or stars.keys())
    absent = [name for name in _REQUIRED if name not in names]
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

    columns = {name: column(name) for name in (*_REQUIRED, "color", "x", "y")}
    lengths = {len(values) for values in columns.values() if values is not None}
    if len(lengths) > 1:
        raise InputError("stars", f"columns of lengths {sorted(lengths)}", "one row a star")
    if columns["x"] is None or columns["y"] is None:
        columns["x"] = columns["y"] = None
    return Stars(**columns)  # type: ignore[arg-type]


def days_of(time: Any) -> float:
    """Convert a time to days since J2000; NaN for None.

    Parameters
    ----------
    time : datetime64, str, astropy Time, float or None
        Time; a float is in days since J2000 already.

    Raises
    ------
    InputError
        If a text is not a time.

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
    try:
        return float(days_since_j2000(np.datetime64(time, "us")))
    except ValueError:
        raise InputError("time", f"{time!r}", "a time such as 2027-06-01T00:20:00, or days since J2000") from None


def _prior_inputs(
    table: Stars,
    shape: tuple[int, int] | None,
    telemetry: Mapping[str, Any] | None,
    image: npt.ArrayLike | None,
    history: Mapping[str, Any] | None,
    time: Any,
    nominal: float | None,
    card: ModelCard | None,
) -> PriorInputs | None:
    """Return the prior zero point, without the level of the exposure's stars; None if there is none."""
    past = _read_history(history, time) if history is not None else {}
    n_past = len(past.get("value", ()))
    conditions = _read_telemetry(telemetry or {}, card)
    if not conditions and not n_past and image is None:
        return None
    if nominal is None:
        # The network predicts offsets from nominal, whose mean in the training is in its card.
        mean = 0.0 if card is None else card.calibration.get("offset", 0.0)
        nominal = float(np.median(past["value"])) - mean if n_past else np.nan
    memory = None
    if n_past:
        memory = build_memory(
            past["days"], past["value"], past["sigma"], at=np.array([days_of(time)]), length=MEMORY_LENGTH
        )
    columns = {name: column for name, column in vars(table).items() if column is not None}
    return PriorInputs(
        nominal=np.array([nominal]),
        days=np.array([days_of(time)]),
        telemetry={name: np.array([value]) for name, value in conditions.items()},
        memory=memory,
        memory_telemetry=None if memory is None else {name: memory.lookup(values) for name, values in past.items()},
        stars=build_star_lists([columns], shape=shape),
        image=None if image is None else _check_patch(image)[None],
    )


def _predict(
    inputs: PriorInputs | None, model: str | None, device: str | None
) -> tuple[tuple[float, float] | None, Method]:
    """Return value and sigma of the prior and its method; None if it is no more than the nominal value."""
    if inputs is None:
        return None, "nominal"
    prior = fallback_prior(inputs) if model is None else predict_prior(inputs, model=model, device=device)
    if not np.isfinite(prior.value[0]) or prior.method[0] == "nominal":
        return None, "nominal"
    method: Method = str(prior.method[0])  # type: ignore[assignment]
    return (float(prior.value[0]), float(prior.sigma[0])), method


def _read_telemetry(telemetry: Mapping[str, Any], card: ModelCard | None) -> dict[str, float]:
    """Return the telemetry of an exposure as numbers; NaN in gaps.

    Raises
    ------
    InputError
        If a name is unknown to the model, or a value is not a number.
    """
    if card is not None and (unknown := sorted(set(telemetry) - set(card.architecture["telemetry"]))):
        wanted = f"names that the model {card.name} knows: {', '.join(card.architecture['telemetry'])}"
        raise InputError("telemetry", f"unknown {', '.join(unknown)}", wanted)
    conditions = {}
    for name, value in telemetry.items():
        try:
            conditions[name] = np.nan if value is None else float(np.asarray(value, dtype=np.float64).reshape(()))
        except (TypeError, ValueError):
            raise InputError(f"telemetry {name}", f"{value!r}", "one number") from None
    return conditions


def _check_patch(image: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Return an image patch as float32.

    Raises
    ------
    InputError
        If it does not have two dimensions.
    """
    patch = np.asarray(image, dtype=np.float32)
    if patch.ndim != 2:
        raise InputError("image", f"shape {patch.shape}", "a patch (y, x), such as 256 x 256 pixels")
    return patch


def _read_history(history: Mapping[str, Any], time: Any) -> dict[str, Float]:
    """Return earlier zero points with their telemetry, as arrays; times in days. Sentinels are dropped.

    Raises
    ------
    InputError
        If a column is missing, columns differ in length, or the time of the exposure is unknown.
    """
    names = list(history.keys())
    absent = [name for name in ("value", "sigma") if name not in names]
    if absent or not {"time", "days"} & set(names):
        raise InputError("history", f"columns {', '.join(map(str, names))}", "time or days, value and sigma")
    columns: dict[str, Float] = {}
    for name in names:
        if name == "time":
            times = np.atleast_1d(np.asarray(history[name]))
            columns.setdefault("days", np.array([days_of(moment) for moment in times]))
            continue
        try:
            columns[name] = np.atleast_1d(np.asarray(history[name], dtype=np.float64))
        except (TypeError, ValueError):
            if name in ("days", "value", "sigma"):
                raise InputError("history", f"column {name} without numbers", "numbers") from None
    lengths = sorted({len(values) for values in columns.values()})
    if len(lengths) > 1:
        raise InputError("history", f"columns of lengths {lengths}", "one row a zero point")
    days = days_of(time)
    if lengths[0] and not np.isfinite(days):
        raise InputError("history", "no time of the exposure", "time=, so that only earlier zero points are read")
    columns["value"], columns["sigma"] = mask_bad_magnitudes(columns["value"]), mask_bad_errors(columns["sigma"])
    usable = (columns["days"] < days) & np.isfinite(columns["value"]) & np.isfinite(columns["sigma"])
    return {name: values[usable] for name, values in columns.items()}


def _fit(table: Stars, options: Mapping[str, Any], prior: tuple[float, float] | None = None) -> StarFit:
    """Fit the stars of a table, combined with a prior if there is one."""
    return fit_stars(
        table.inst_mag, table.inst_mag_err, table.ref_mag, table.ref_mag_err, table.color, table.x, table.y,
        prior=prior, **options,
    )  # fmt: skip
