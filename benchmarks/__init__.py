"""Measurements side by side, within one run: they print ratios and write JSON, and assert nothing."""
