"""Training: joins model and data; knows neither Ray nor MLflow. Start with `loop.py`."""
