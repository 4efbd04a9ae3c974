"""The MLflow side: where the evidence is kept."""
