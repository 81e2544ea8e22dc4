"""``csstdask sed``: predict SEDs from spectra."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from csstdask.cli.options import Device, Model, app, print_message


@app.command()
def sed(
    spectra: Annotated[
        list[Path],
        typer.Argument(help="LAMOST spectra, or FITS tables with WAVELENGTH and FLUX (rest frame)."),
    ],
    to: Annotated[Path, typer.Option(help="Parquet file to write.")],
    medium: Annotated[
        str | None, typer.Option(help="Wavelengths in vacuum or air. Default: as in the format of the file.")
    ] = None,
    model: Model = "default",
    resolution: Annotated[float | None, typer.Option(help="Resolving power. Default: about 2000.")] = None,
    stars: Annotated[
        Literal["real", "synthetic", "auto"],
        typer.Option(help="Kind of the stars: SEDs of real stars are corrected for errors of model spectra."),
    ] = "real",
    device: Device = None,
) -> None:
    """Predict the SEDs of stars from their spectra."""
    from csstdask.flux.sed_files import predict_files

    failed = predict_files(spectra, to, medium=medium, model=model, resolution=resolution, stars=stars, device=device)
    for path, reason in failed.items():
        print_message(f"failed {path}: {reason}")
    print_message(f"{to}: {len(spectra) - len(failed)} SEDs")
    if failed:
        raise typer.Exit(1)
