"""Entry points, one module each: `python -m experiments.NAME`."""
