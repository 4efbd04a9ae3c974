"""Test doubles for the seams of a study: in-memory twins, and a toy objective that needs no TensorFlow."""
