"""Evaluate cosmic-ray detection."""
