"""Point spread functions: reconstructed at stars, and anywhere on a detector."""

from csstdask.nn.card import ModelCard
from csstdask.psf.export import write_psf, write_stdpsf
from csstdask.psf.field import PsfField
from csstdask.psf.reconstruct import Reconstruction, reconstruct

__all__ = ["ModelCard", "PsfField", "Reconstruction", "reconstruct", "write_psf", "write_stdpsf"]
