"""Commands that process single files: ``csstdask clean``, ``sed`` and ``zeropoint``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from csstdask.cli.options import Device, Model, app, print_list, print_message
from csstdask.core.settings import validate_settings

if TYPE_CHECKING:
    from csstdask.pipeline.config import RunConfig


@app.command()
def clean(
    source: Annotated[Path, typer.Argument(metavar="IN.fits", help="FITS file, plain or compressed.")],
    to: Annotated[Path, typer.Option("-o", "--to", metavar="OUT.fits", help="FITS file to write.")],
    model: Annotated[str | None, typer.Option(help="Detection model (see `csstdask models`).")] = None,
    config: Annotated[Path | None, typer.Option(help="Settings of a run (TOML; see `csstdask config`).")] = None,
    instrument: Annotated[
        str | None, typer.Option(help="Camera: a built-in name or a TOML file. Default: recognised from the headers.")
    ] = None,
    gain: Annotated[
        float | None, typer.Option(help="Gain [e-/adu] of an unknown camera; 1 for images in electrons.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output file.")] = False,
) -> None:
    """Find and repair the cosmic rays of one FITS file."""
    from csstdask.pipeline.clean_file import clean_file
    from csstdask.pipeline.config import RunConfig, load_config

    settings = load_config(config)
    if model is not None:
        settings = validate_settings(RunConfig, _with_model(settings, model), "--model", "a model of detection")
    summary = clean_file(
        source,
        to,
        config=settings,
        instrument=instrument,
        gain=gain,
        overwrite=overwrite,
        on_chip=lambda chip: print_message(str(chip)),
    )
    print_list("left as it was", summary.untouched)
    print_list("failed", summary.problems)
    if summary.problems:
        raise typer.Exit(1)


def _with_model(settings: RunConfig, model: str) -> dict[str, Any]:
    values = settings.model_dump(mode="json")
    return values | {"detect": values["detect"] | {"model": model}}


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
