"""What proposes hyperparameters, and the trial storage of trials."""
