"""Evaluate repair on an image of M51 from Kitt Peak with added cosmic rays (van Dokkum & Pasha 2024)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from csstdask.core.errors import InputError
from csstdask.core.warnings import suppress_warnings
from csstdask.evaluation.inpaint.methods import MaskedImage, repair_methods
from csstdask.evaluation.inpaint.photometry_statistics import summarise_pulls

#: Gain [e-/count]: an estimate, the documentation of the camera does not state it.
_GAIN = np.float32(4.0)
_REPEATS = 3
_FILES = ("m51_org.fits", "m51_with_cosmicrays.fits", "m51_mask.fits")


def m51_paths(folder: Path) -> list[Path]:
    """Return the paths of the original image, the image with cosmic rays, and their mask.

    Raises
    ------
    InputError
        If a file does not exist.
    """
    paths = [folder / "m51_inpaint" / name for name in _FILES]
    for path in paths:
        if not path.is_file():
            raise InputError(path, "no file", "the frame of M51, as in the folder of real images")
    return paths


def m51_part(folder: Path, models: Sequence[str]) -> dict[str, Any]:
    """Measure the errors of masked pixels [count] and the run time of each method.

    Parameters
    ----------
    folder : Path
        Folder with ``m51_inpaint/``.
    models : sequence of str
        Networks, by name or card.

    Returns
    -------
    dict
        By method ``rms``, ``mean_absolute``, ``median_absolute``, ``bias`` and ``seconds``; for methods that return a
        variance also ``pull``.

    Raises
    ------
    InputError
        If a file does not exist.
    """
    with suppress_warnings():
        truth, damaged, mask = (np.asarray(fits.getdata(path), dtype=np.float32) for path in m51_paths(folder))
    hit = mask > 0
    frame = MaskedImage(damaged * _GAIN, None, np.zeros(hit.shape, dtype=bool))
    result: dict[str, Any] = {}
    for name, fill in repair_methods(models).items():
        fixed, variance = fill(frame, hit)
        seconds = []
        for _ in range(_REPEATS):
            start = time.perf_counter()
            fill(frame, hit)
            seconds.append(time.perf_counter() - start)
        off = fixed[hit] / _GAIN - truth[hit]
        result[name] = {
            "rms": float(np.sqrt(np.mean(off**2))),
            "mean_absolute": float(np.abs(off).mean()),
            "median_absolute": float(np.median(np.abs(off))),
            "bias": float(off.mean()),
            "seconds": float(np.median(seconds)),
        }
        if variance is not None:
            known = hit & np.isfinite(variance) & (variance > 0)
            pull = (fixed / _GAIN - truth)[known] / np.sqrt(variance[known]) * _GAIN
            result[name]["pull"] = summarise_pulls(pull)
    return result
