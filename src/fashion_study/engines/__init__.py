"""Engines, which propose hyperparameters."""
