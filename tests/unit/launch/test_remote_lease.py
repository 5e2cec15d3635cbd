"""Lease and numbers of a run at an address: who lost them finds out, and touches nothing of another's."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import WorldStateError
from pipeline.launch import remote_lease, remote_run
from pipeline.launch.fence import SupersededError, newest_token, note_newer, refuse_superseded, token_of
from pipeline.launch.remote_fence import newest_attempt, refuse_superseded_at
from pipeline.launch.remote_lease import lock_identity
from tests.faulty_proxy import FaultyProxy
from tests.machines import WAIT_S, Machine

Machines = Callable[..., Machine]


def wait_until(happened: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + WAIT_S
    while not happened():
        assert time.monotonic() < give_up_s
        time.sleep(0.01)


@pytest.fixture
def of_other_locks(monkeypatch: pytest.MonkeyPatch, machines: Machines) -> None:
    """Each machine has a lock of its own, and so waits for the lease of another to run out."""
    monkeypatch.setattr(remote_run, "lock_identity", lock_identity)


def test_an_attempt_has_one_number_at_the_store_and_in_its_copy_and_each_below_it_is_taken(
    machines: Machines,
) -> None:
    machine = machines("here").begin()
    note_newer(machine.run_dir, 4)
    attempt = machine.run.begin_attempt()
    assert token_of(attempt) == newest_token(machine.run_dir) == newest_attempt(machine.store).token == 5
    assert sorted(machine.store.names("attempts/")) == [f"attempts/000{n}" for n in range(1, 6)]
    refuse_superseded_at(machine.store, 5)


def test_a_number_that_a_late_rank_notes_in_the_copy_meanwhile_is_not_the_attempts(
    machines: Machines,
) -> None:
    machine = machines("here").begin()

    def late_rank(operation: str, name: str) -> None:
        if operation == "create" and name == "attempts/0002":
            note_newer(machine.run_dir, 2)

    machine.before(late_rank)
    attempt = machine.run.begin_attempt()
    assert token_of(attempt) == newest_token(machine.run_dir) == newest_attempt(machine.store).token
    refuse_superseded(machine.run_dir, attempt)


def test_any_larger_number_refuses_an_attempt_whatever_lies_between(machines: Machines) -> None:
    machine = machines("here").begin()
    machine.record("a")
    machine.store.create("attempts/0009", b'{"copy": "another"}')
    with pytest.raises(SupersededError, match="attempt 0009 has begun since") as told:
        machine.ship()
    assert told.value.newest == 9


def test_of_two_that_take_a_number_at_once_one_is_refused(machines: Machines) -> None:
    old, new = machines("old").begin(), machines("new")

    def other(operation: str, name: str) -> None:
        if operation == "create" and name == "attempts/0002":
            new.begin()

    old.before(other)
    with pytest.raises(SupersededError, match="went on in another working copy, as attempt 0002"):
        old.run.begin_attempt()
    assert newest_attempt(new.store).token == token_of(new.attempt) == 2
    new.ship()


def test_no_attempt_begins_for_a_lease_that_was_taken_over(machines: Machines) -> None:
    old, new = machines("old").begin(), machines("new")
    new.lease.acquire()
    with pytest.raises(SupersededError, match="another job's by now"):
        old.run.begin_attempt()
    assert newest_attempt(new.store).token == 1, "who has the lease keeps the next number"


def test_a_lease_that_is_lost_while_an_attempt_takes_its_number_ends_it(machines: Machines) -> None:
    machine = machines("here").begin()

    def lose(operation: str, name: str) -> None:
        if operation == "create" and name == "attempts/0002":
            machine.lease._lose("was taken over")

    machine.before(lose)
    with pytest.raises(SupersededError, match="another job's by now"):
        machine.run.begin_attempt()


def test_who_lost_the_lease_lets_go_of_nothing_that_is_anothers(machines: Machines) -> None:
    old, new = machines("old"), machines("new")
    old.run.acquire()
    new.run.acquire()
    before = new.store.read("lease")
    old.run.release()
    assert new.store.read("lease") == before
    new.lease.confirm()


def test_a_lease_that_was_let_go_of_is_taken_at_once(machines: Machines, of_other_locks: None) -> None:
    first = machines("first")
    first.run.acquire()
    first.run.release()
    machines("second").begin()  # watching would take four hours


def test_a_job_whose_disk_was_cloned_is_not_taken_for_dead(
    machines: Machines, of_other_locks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_lease, "RENEW_S", 0.5)
    original = machines("original").begin()
    clone = machines("clone")
    (clone.run_dir).mkdir()
    (clone.run_dir / "copy").write_bytes((original.run_dir / "copy").read_bytes())
    with pytest.raises(WorldStateError, match="is held by a live job"):
        clone.run.acquire()
    original.lease.confirm()


def test_locks_are_told_apart_by_file_and_by_start_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "a.lock", tmp_path / "b.lock"
    first.touch()
    second.touch()
    assert lock_identity(first) == lock_identity(first) != lock_identity(second)
    assert lock_identity(tmp_path / "absent") == ""
    before = lock_identity(first)
    (tmp_path / "boot").write_text("another start of the kernel\n")
    monkeypatch.setattr(remote_lease, "_BOOT", tmp_path / "boot")
    assert lock_identity(first) not in ("", before)


def test_a_renewal_that_hangs_is_given_up_in_time_for_another(
    machines: Machines, of_other_locks: None, s3_place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One PUT of the holder is swallowed. Who watches from then on must find the lease renewed."""

    class Swallowing(FaultyProxy):
        swallowed = threading.Event()

        def next_fault(self, method, path, asked):
            fault = super().next_fault(method, path, asked)
            if method == "PUT" and armed.is_set() and not self.swallowed.is_set():
                self.swallowed.set()
                watching.wait(WAIT_S)
                over.wait(WAIT_S)
            return fault

    armed, watching, over = threading.Event(), threading.Event(), threading.Event()
    monkeypatch.setattr(remote_lease, "RENEW_S", 0.75)
    with Swallowing(s3_place, faults=False).running() as proxy:
        with monkeypatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", proxy.url)
            holder = machines("holder")
        holder.begin()
        armed.set()
        assert proxy.swallowed.wait(WAIT_S)
        try:
            with pytest.raises(WorldStateError, match="is held by a live job"):
                machines("watcher").run.acquire()
        finally:
            over.set()
    holder.lease._is_lost.set()  # its server is gone: nothing to let go of


def test_whatever_ends_the_renewals_loses_the_lease_loudly(
    machines: Machines, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(remote_lease, "RENEW_S", 0.02)
    machine = machines("here")

    def broken(name: str, data: bytes, tag: str) -> None:
        raise TypeError("a bug")

    machine.lease._renewing.replace = broken
    machine.run.acquire()
    wait_until(lambda: "can no longer be renewed (TypeError: a bug): this job stops" in caplog.text)
    with pytest.raises(SupersededError):
        machine.run.begin_attempt()


def test_a_store_that_is_away_for_longer_than_a_lease_is_said_once_and_ends_nothing(
    machines: Machines, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(remote_lease, "RENEW_S", 0.02)
    caplog.set_level("INFO")
    machine = machines("here")
    real, away = machine.store.replace, threading.Event()

    def replace(name: str, data: bytes, tag: str) -> str | None:
        if away.is_set():
            raise WorldStateError("is unreachable")
        return real(name, data, tag)

    machine.lease._renewing.replace = replace
    away.set()
    machine.run.acquire()
    wait_until(lambda: "another machine may take the run (is unreachable)" in caplog.text)
    away.clear()
    wait_until(lambda: "is renewed again, and was nobody else's" in caplog.text)
    assert caplog.text.count("another machine may take the run") == 1
    machine.run.begin_attempt()


def test_a_renewal_whose_answer_was_lost_and_that_arrived_late_costs_nothing(machines: Machines) -> None:
    machine = machines("here").begin()
    there = machine.store.read("lease")
    assert there is not None
    late = json.dumps(json.loads(there.data) | {"renewals": 99}).encode()
    machine.store.replace("lease", late, there.tag)
    machine.lease.confirm()
