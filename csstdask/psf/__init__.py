"""Point spread functions: reconstructed at stars, and anywhere on a detector."""

from csstdask.nn.card import ModelCard
from csstdask.psf.export import write_psf, write_stdpsf
from csstdask.psf.field import PsfField
from csstdask.psf.frame import FramePsf, fit_frame
from csstdask.psf.reconstruct import Reconstruction, reconstruct
from csstdask.psf.selection import Selection, select_stars

__all__ = [
    "FramePsf",
    "ModelCard",
    "PsfField",
    "Reconstruction",
    "Selection",
    "fit_frame",
    "reconstruct",
    "select_stars",
    "write_psf",
    "write_stdpsf",
]
