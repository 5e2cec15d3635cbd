"""Packing: images and labels → shards with a manifest, and audits of shards that are there."""
