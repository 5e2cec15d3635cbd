"""The shipped train job, whose ranks die as they were told: `python -m tests.chaos.ray_driver FOLDER …`."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

from pipeline.launch import ray_attempt
from pipeline.launch.job import run_job
from pipeline.launch.train_job import FIELDS, train
from tests.chaos.ray_rank import worker
from tests.chaos.seams_of_ray import DRIVER_PID


def main(folder: str, *argv: str) -> int:
    """The job's exit code."""
    (Path(folder) / DRIVER_PID).write_text(str(os.getpid()))
    ray_attempt._worker = worker
    return run_job("train", partial(train, argv=argv), FIELDS)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
