"""Training of PSF models."""
