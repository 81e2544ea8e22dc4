"""Detection and repair of cosmic rays in single frames."""

from csstdask.cosmicray.clean import Cleaned, clean
from csstdask.cosmicray.detect import Detection, detect
from csstdask.cosmicray.inpaint import Inpainting, inpaint
from csstdask.nn.card import ModelCard

__all__ = ["Cleaned", "Detection", "Inpainting", "ModelCard", "clean", "detect", "inpaint"]
