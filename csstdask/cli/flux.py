"""Verbs of slitless flux calibration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from csstdask.cli.options import app, say
from csstdask.core.errors import InputError


@app.command()
def sed(
    spectra: Annotated[
        list[Path], typer.Argument(help="FITS files: LAMOST, or a table with WAVELENGTH and FLUX, at rest.")
    ],
    to: Annotated[Path | None, typer.Option(help="Parquet file for the SEDs.")] = None,
    medium: Annotated[
        str | None, typer.Option(help="Of the wavelengths: vacuum or air; default: the format's own.")
    ] = None,
    model: Annotated[str, typer.Option(help="A name that `csstdask models` lists, or a card's path.")] = "default",
    resolution: Annotated[float | None, typer.Option(help="Resolving power, if it is not about 2000.")] = None,
    stars: Annotated[
        Literal["real", "synthetic", "auto"], typer.Option(help="Correct the SEDs as those of real stars.")
    ] = "real",
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cpu.")] = None,
) -> None:
    """Predict the SEDs of stars from their spectra."""
    if to is None:
        raise InputError("sed", "no --to", "a Parquet file for the SEDs")
    from csstdask.flux.sed_files import predict_files

    failed = predict_files(spectra, to, medium=medium, model=model, resolution=resolution, stars=stars, device=device)
    for path, reason in failed.items():
        say(f"failed {path}: {reason}")
    say(f"{to}: {len(spectra) - len(failed)} SEDs")
    if failed:
        raise typer.Exit(1)
