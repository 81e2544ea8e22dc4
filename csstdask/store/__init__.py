"""Campaigns and runs on disk, FITS in, FITS out."""
