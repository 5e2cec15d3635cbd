"""The shells around `fit()`: command line, preflight, Ray Train, torchrun, and the local cluster."""
