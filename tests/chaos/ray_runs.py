"""Runs under Ray Train, on a head of their own: the shipped job, again and again until it has ended.

A rank or a controller that dies costs an attempt of the same job. Where the driver dies, or the point
goes on at another world size, the same command is typed again. A job that does not end is killed with all
of its session; what it has left on the head ends with that, which is to serve no point after it.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.launch.job import read_result
from pipeline.launch.local_cluster import LocalCluster
from pipeline.tracking.journal import Metrics, read_journal
from tests.chaos.hits import missed, read_hits
from tests.chaos.nursery_client import ROOT
from tests.chaos.points import Attempt, Point
from tests.chaos.rank import Orders
from tests.chaos.ray_rank import orders_file
from tests.chaos.torchrun_runs import typed

TIMEOUT_S = 300
NUM_CPUS = 4


def environment_of(cluster: LocalCluster) -> dict[str, str]:
    """What a job needs to join the head."""
    inherited = {name: value for name, value in cluster.environment.items() if name != "MLFLOW_TRACKING_URI"}
    return inherited | {"RAY_ADDRESS": cluster.address, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def jobs_of(point: Point) -> list[tuple[Attempt, ...]]:
    """The attempts of each time that the command is typed."""
    jobs: list[list[Attempt]] = []
    for attempt in point.attempts:
        before = jobs[-1][-1] if jobs else None
        goes_on = (
            before and before.world == attempt.world and before.strike and before.strike.phase != "driver"
        )
        if goes_on:
            jobs[-1].append(attempt)
        else:
            jobs.append([attempt])
    return [tuple(job) for job in jobs]


def run_ray(
    point: Point, shards: str, orders: Orders, run_dir: Path, environment: Mapping[str, str]
) -> list[str]:
    """Run all attempts of a point; what went otherwise than it was to go, MLflow's points included."""
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    orders_file(run_dir).write_text(json.dumps(orders.to_dict()))
    ended = 0
    for job in jobs_of(point):
        code = _job(point, job, shards, orders.folder, run_dir, environment)
        ended += len(job)
        wrong = missed(point.attempts[:ended], read_hits(orders.folder)) or _otherwise(job[-1], code)
        if wrong:
            return [f"job of attempts up to {ended}: {wrong} (it ended with {code})"]
    result = read_result((orders.folder / "log").read_text(errors="replace").splitlines())
    if not result or result["status"] != "ok":
        return [f"the last job said {result}"]
    return lost_in_mlflow(run_dir)


def _otherwise(last: Attempt, code: int | None) -> str:
    """In what a job should have ended otherwise, by its last attempt; "" where it ended so."""
    if code is None:
        return f"not over after {TIMEOUT_S} s"
    if last.strike is None:
        return "" if code == 0 else "not to end so"
    driver = last.strike.phase == "driver"
    # Without a restart left the driver says what was lost, in good order.
    return "" if code and driver == (code == -signal.SIGKILL) else "not to end so"


def _job(
    point: Point, attempts: Sequence[Attempt], shards: str, folder: Path, run_dir: Path,
    environment: Mapping[str, str],
) -> int | None:  # fmt: skip
    """The exit code of the command, typed once, or minus its signal; None where it did not end in time."""
    command = [sys.executable, "-m", "tests.chaos.ray_driver", str(folder)]
    command += typed(point, shards, str(run_dir.parent), run_dir.name)
    command += ["--workers", str(attempts[0].world), "--register", "", "--launch.max_failures"]
    command.append(str(len(attempts) - 1))
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=dict(environment), stdin=subprocess.DEVNULL, stdout=log,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            return process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:  # also where the campaign is stopped
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def lost_in_mlflow(run_dir: Path) -> list[str]:
    """In what MLflow's own table of a run is not the journal: missing, doubled or other points."""
    points = {
        (key, record.step): value
        for record in read_journal(run_dir)
        if isinstance(record, Metrics)
        for key, value in record.values.items()
    }
    connection = sqlite3.connect(f"file:{run_dir.parent / 'mlflow.db'}?mode=ro", uri=True)
    try:
        rows = connection.execute(
            "select m.key, m.step, m.value from metrics m join runs r on r.run_uuid = m.run_uuid"
            " where r.name = ? and m.key not like 'system/%'",
            (run_dir.name,),
        ).fetchall()
    finally:
        connection.close()
    wrong = [
        f"MLflow has {count} of {name}"
        for name, count in Counter(row[:2] for row in rows).items()
        if count > 1
    ]
    shipped = {(key, step): value for key, step, value in rows}
    wrong += [f"MLflow lacks {name}" for name in points.keys() - shipped.keys()]
    wrong += [f"MLflow alone has {name}" for name in shipped.keys() - points.keys()]
    return wrong + [
        f"MLflow has another {name}" for name in points.keys() & shipped if points[name] != shipped[name]
    ]
