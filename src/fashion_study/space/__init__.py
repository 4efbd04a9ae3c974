"""Search spaces: what a study may vary."""
