"""Cosmic rays: found, and repaired."""

from csstdask.cosmicray.detect import Detection, detect
from csstdask.cosmicray.inpaint import Inpainting, inpaint
from csstdask.nn.card import ModelCard

__all__ = ["Detection", "Inpainting", "ModelCard", "detect", "inpaint"]
