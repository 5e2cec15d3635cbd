"""A checkpoint at work: masks for pictures, the exported model, and the model that MLflow serves."""
