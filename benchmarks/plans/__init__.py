"""What planning the order of samples costs, and what the order is worth: for `benchmarks/plan.py`."""
