"""What a run reports: metrics file, progress line, MLflow, plots."""
