"""What proposes hyperparameters, and the ledger of trials."""
