"""Index, audit or stage shards: `python jobs/shards.py index|verify|stage DIR_OR_URL …`; see --help."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout or the job's copy of it

from pipeline.launch.job import run_job
from pipeline.launch.shard_commands import FIELDS, run_command

if __name__ == "__main__":
    sys.exit(run_job("shards", partial(run_command, argv=sys.argv[1:]), FIELDS))
