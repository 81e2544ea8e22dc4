"""Trainings of networks: settings, examples, losses and the cards that they end with."""
