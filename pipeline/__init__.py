"""A distributed training pipeline for semantic segmentation with class center similarity.

The folders, from the inside out: `model` (tensors only), `data` (shards to uint8 batches),
`train` (joins the two), `tracking` (journal and MLflow), `inference` (a checkpoint at work),
`launch` (the only place that knows Ray). See docs/architecture.md.
"""
