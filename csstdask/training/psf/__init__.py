"""Train PSF models."""
