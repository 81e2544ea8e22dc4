"""Verb of photometric zero points."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from csstdask.cli.options import app, say
from csstdask.core.errors import InputError


@app.command()
def zeropoint(
    table: Annotated[
        Path,
        typer.Argument(help="Sources: a unit's table of a run, or Parquet, FITS, ECSV or CSV with ra, dec, a flux."),
    ],
    reference: Annotated[
        Path | None, typer.Option(help="Reference stars: Parquet with ra, dec, mag_BAND, mag_BAND_err, pmra, pmdec.")
    ] = None,
    to: Annotated[Path | None, typer.Option(help="JSON file for the zero point.")] = None,
    band: Annotated[
        str | None, typer.Option(help="Band of the reference; default: the unit's, or that of least scatter.")
    ] = None,
    flux: Annotated[str | None, typer.Option(help="Column of the flux; default: flux_aperture, or flux.")] = None,
    time: Annotated[str | None, typer.Option(help="Begin of the exposure (ISO), for proper motions.")] = None,
    radius: Annotated[float, typer.Option(min=0.01, help="Largest distance of a match [arcsec].")] = 1.0,
    aperture_correction: Annotated[
        float | None, typer.Option(help="Added to instrumental magnitudes [mag]; default: the unit's, or 0.")
    ] = None,
) -> None:
    """Solve for the photometric zero point of one table of sources."""
    if reference is None or to is None:
        missing, what = ("--reference", "a Parquet table of stars") if reference is None else ("--to", "a JSON file")
        raise InputError("zeropoint", f"no {missing}", what)
    from csstdask.pipeline.zeropoint_file import solve_table

    found = solve_table(
        table, reference, to, band=band, flux=flux, time=time, radius=radius,
        aperture_correction=aperture_correction, on_progress=say,
    )  # fmt: skip
    if not found.solved.solved:
        raise typer.Exit(1)
