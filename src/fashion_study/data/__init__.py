"""Data sets: found, verified, split."""
