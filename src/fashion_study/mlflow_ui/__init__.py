"""MLflow's UI on a store: started safely, and gone with whoever started it."""
