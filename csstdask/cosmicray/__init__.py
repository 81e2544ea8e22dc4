"""Cosmic rays: found, and repaired."""

from csstdask.cosmicray.card import ModelCard
from csstdask.cosmicray.detect import Detection, detect
from csstdask.cosmicray.inpaint import Inpainting, inpaint

__all__ = ["Detection", "Inpainting", "ModelCard", "detect", "inpaint"]
