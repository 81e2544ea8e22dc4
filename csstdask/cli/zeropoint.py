"""``csstdask zeropoint``: solve for the zero point of one table of sources."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from csstdask.cli.options import app, print_message


@app.command()
def zeropoint(
    table: Annotated[
        Path,
        typer.Argument(help="Sources: a unit's table in a run, or Parquet, FITS, ECSV or CSV with ra, dec and a flux."),
    ],
    reference: Annotated[
        Path, typer.Option(help="Reference stars: Parquet with ra, dec, mag_BAND, mag_BAND_err, pmra, pmdec.")
    ],
    to: Annotated[Path, typer.Option(help="JSON file to write.")],
    band: Annotated[
        str | None, typer.Option(help="Band of the reference. Default: the unit's, or that of the smallest scatter.")
    ] = None,
    flux: Annotated[str | None, typer.Option(help="Column of the flux. Default: flux_aperture or flux.")] = None,
    time: Annotated[str | None, typer.Option(help="Start of the exposure (ISO), for proper motions.")] = None,
    radius: Annotated[float, typer.Option(min=0.01, help="Largest separation of a match [arcsec].")] = 1.0,
    aperture_correction: Annotated[
        float | None, typer.Option(help="Added to instrumental magnitudes [mag]. Default: the unit's, or 0.")
    ] = None,
) -> None:
    """Solve for the photometric zero point of one table of sources."""
    from csstdask.pipeline.zeropoint_file import solve_table

    found = solve_table(
        table,
        reference,
        to,
        band=band,
        flux=flux,
        time=time,
        radius=radius,
        aperture_correction=aperture_correction,
        on_progress=print_message,
    )
    if not found.solved.solved:
        raise typer.Exit(1)
