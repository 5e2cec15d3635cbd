"""Samples: from a tree of pictures to shards, and from shards to batches in a reproducible order."""
