"""MLflow's UI on a store: a safe server that ends with the process that started it."""
