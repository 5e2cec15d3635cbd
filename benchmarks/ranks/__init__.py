"""The parts of benchmarks/determinism.py."""
