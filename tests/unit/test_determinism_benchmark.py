"""The benchmark of determinism runs, and compares each setting with stock DDP of as many micro-batches."""

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_a_smoke_run_writes_a_row_for_each_setting(tmp_path):
    command = [
        sys.executable,
        str(BENCHMARKS / "determinism.py"),
        "--quick",
        "--json",
        str(tmp_path / "r.json"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert {row["determinism"]: (row["versus"], row["micro_batches"]) for row in rows} == {
        "off": ("off", 1), "exact": ("off", 1), "elastic, 2 shards": ("off", 1),
        "off, 4 micro-batches": ("off, 4 micro-batches", 4),
        "exact, 4 micro-batches": ("off, 4 micro-batches", 4),
        "elastic, 8 shards": ("off, 4 micro-batches", 4),
    }  # fmt: skip
    assert all(row["step_ms"] > 0 and row["peak_mb"] > 0 and row["ratio"] > 0 for row in rows)
    assert [row["ratio"] for row in rows if row["determinism"] == row["versus"]] == [1.0, 1.0]
