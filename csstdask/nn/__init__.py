"""Shared parts of all networks: blocks, weights, model cards, devices and precision, and the trainer."""
