"""Search settings by trials: `python jobs/tune_cityscapes.py --shards DIR [--space FILE] …`; see --help."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout or the job's copy of it

from pipeline.launch.job import run_job
from pipeline.launch.tune_job import FIELDS, tune

if __name__ == "__main__":
    sys.exit(run_job("tune", partial(tune, argv=sys.argv[1:]), FIELDS))
