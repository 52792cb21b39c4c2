"""Exported models in MLflow's model registry: as pyfunc models, with where they come from."""
