"""Train on packed shards: `python jobs/train_cityscapes.py --shards DIR [--recipe NAME] …`; see --help."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout or the job's copy of it

from pipeline.launch.job import run_job
from pipeline.launch.train_job import FIELDS, train

if __name__ == "__main__":
    sys.exit(run_job("train", partial(train, argv=sys.argv[1:]), FIELDS))
