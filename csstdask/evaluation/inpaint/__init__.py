"""Evaluate the repair of hit pixels."""
