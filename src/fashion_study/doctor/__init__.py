"""The doctor: trial storage, runs, registry and files of a store, compared and repaired."""
