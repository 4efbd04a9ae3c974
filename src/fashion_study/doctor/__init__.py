"""The doctor: trial storage, runs, registry and files, compared."""
