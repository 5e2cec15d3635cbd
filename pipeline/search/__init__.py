"""The pure part of a search: its space, its proposals, its decisions and its record; no Ray, no MLflow."""
