"""Train the cosmic-ray detector."""
