"""The doctor: ledger, runs, registry and files, compared."""
