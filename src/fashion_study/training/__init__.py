"""The Keras side: what a worker process does with one set of hyperparameters."""
