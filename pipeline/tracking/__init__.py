"""What a run leaves behind: an append-only journal on disk, and MLflow filled from it by the driver."""
