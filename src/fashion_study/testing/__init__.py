"""Test doubles for the seams of a study: in memory, and a toy objective that needs no TensorFlow."""
