"""The loaders that `benchmarks/loader.py` measures: one module a loader, each in a process of its own.

A module has three functions: `write(task)` packs the pictures as that loader wants them, `batches(task)`
reads them with two workers, without end, and `from_memory(task)` does one sample's work in the calling
thread, from bytes in memory: the limit that no loader of that format can beat.

The peers get the same crop policy by the very same code as this pipeline's loader (choose the crop,
then resize it alone, in uint8), which is faster than what their users usually write; only `folder` works
in the common frameworks' order. What differs is the format and how the samples travel.
"""
