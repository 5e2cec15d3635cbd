"""Processes that each run one attempt of a run kept at an address, and are killed at a point of an upload.

As tests/dist/attempts.py; CASE has runs, run_dir (the working copy) instead of run_dir alone, and `at` names
[operation, part of an object's name, how often before]: put, create or remove, before it and ("done …")
after.
"""

import os
import sys
import threading
import time
from pathlib import Path

import torch

from pipeline.data.store.objects import ObjectStore
from pipeline.data.store.s3 import s3_client
from pipeline.errors import PipelineError
from pipeline.launch import remote_lease, remote_run
from pipeline.launch import shipper as shipper_module
from pipeline.launch.remote_run import held_run
from pipeline.launch.run_context import JournaledContext
from pipeline.launch.shipment import Shipment
from pipeline.launch.shipper import Shipper
from pipeline.recipes import recipe
from pipeline.settings import with_settings
from pipeline.train.loop import fit
from pipeline.world import World
from tests.dist.attempts import serve

STRIKE_WAIT_S = 60


class Striking:
    """The store's operations, with something that happens at one of them."""

    def __init__(self, at: list, number: int) -> None:
        self.at, self.number, self.seen = at, number, 0
        self.struck = threading.Event()
        for operation in ("put", "create", "remove"):
            self.plant(operation, getattr(ObjectStore, operation))

    def plant(self, operation: str, real) -> None:
        def struck(store, name, *rest):
            self.strike(operation, name)
            answer = real(store, name, *rest)
            self.strike(f"done {operation}", name)
            return answer

        setattr(ObjectStore, operation, struck)

    def strike(self, operation: str, name: str) -> None:
        wanted, part, before = self.at
        if operation == wanted and part in name:
            self.seen += 1
            if self.seen == before + 1:
                self.struck.set()
                os.kill(os.getpid(), self.number)
                time.sleep(0.2)  # a stopped process goes on here


def each_shipment() -> threading.Semaphore:
    """Released after each shipment from now on."""
    shipped, real = threading.Semaphore(0), Shipment.ship

    def ship(shipment):
        try:
            real(shipment)
        finally:
            shipped.release()

    Shipment.ship = ship
    return shipped


def attempt(case: dict) -> int:
    torch.set_num_threads(1)
    remote_lease.RENEW_S = case.get("renew_s", 0.25)
    shipper_module.AGAIN_S = 0.5
    remote_run.FINISH_WAIT_S = case.get("finish_wait_s", 20.0)
    config = with_settings(recipe("laptop"), case["settings"] | {"launch.use_gpu": "no"})
    striking = Striking(case["at"], case["signal"]) if "at" in case else None
    run_dir = Path(case["run_dir"])
    try:
        with held_run(case["runs"], run_dir, config) as run:
            name = run.begin_attempt()
            if case.get("hold_s"):
                Path(case["told"]).touch()
                time.sleep(case["hold_s"])
            shipped = each_shipment()
            shipper = Shipper(run.shipment(), run_dir, name)

            def saved() -> None:  # wait, so that each shipment has the same objects in every run of a case
                shipper.wake()
                if case.get("in_step", True):
                    shipped.acquire(timeout=STRIKE_WAIT_S)

            context = JournaledContext(run_dir, World(), name, saved=saved)
            try:
                fit(config, case["shards"], run_dir, context)
            finally:
                context.close()
                shipper.close()
        if striking:
            assert striking.struck.wait(0), "nothing was struck"
    except PipelineError as error:
        print(error, file=sys.stderr, flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    s3_client(1.0)  # reads botocore's description of S3 once, before the forks
    serve(attempt)
