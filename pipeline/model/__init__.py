"""The network and its losses: tensors in, tensors out. Knows no data set, no cluster and no files."""
