"""A run at an address goes on in another copy: whatever a frozen holder still does, all see one run."""

import itertools
import os
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config import StoreConfig
from pipeline.errors import WorldStateError
from pipeline.launch import remote_lease, remote_run
from pipeline.launch.fence import SupersededError
from pipeline.launch.remote_copy import seal_journals_at
from tests.machines import Frozen, Machine
from tests.objects_in_memory import ObjectsInMemory

Machines = Callable[..., Machine]


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects in memory, for the many runs of these tests, and disks that are never waited for."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    there: dict[str, dict[str, bytes]] = defaultdict(dict)

    def open_objects(root: str, config: StoreConfig) -> ObjectsInMemory:
        return ObjectsInMemory(root, there[root])

    monkeypatch.setattr(remote_run, "open_objects", open_objects)
    monkeypatch.setattr(remote_lease, "open_objects", open_objects)


FROZEN_AT = [
    ("create", "/000002.jsonl"),
    ("create", "0002-0001"),
    ("create", "/000001.jsonl"),
    ("create", "COMMIT.json"),
    ("put", "model.safetensors"),
    ("put", "config.json"),
]
"""Requests of a shipment: with and without a journal, or a checkpoint, that the store knows of already."""


def frozen_at(old: Machine, operation: str, part: str) -> Frozen:
    """A job that shipped a line and a checkpoint, and stands still while it ships more of both."""
    old.record("first")
    (old.run_dir / "config.json").write_text("{}")
    old.commit(2)
    if part != "/000001.jsonl":
        old.ship()
    old.record("second")
    old.record("of another journal", "0002")
    (old.run_dir / "config.json").write_text("{} ")
    old.commit(4)
    return Frozen(old, operation, part)


@pytest.mark.parametrize(("operation", "part"), FROZEN_AT)
def test_whenever_a_frozen_holder_wakes_up_in_a_takeover_the_new_copy_has_all_that_counts(
    operation: str, part: str, machines: Machines
) -> None:
    moments = []
    for moment in itertools.count():
        address = f"s3://runs/{FROZEN_AT.index((operation, part))}-{moment}/run"
        old, new, third = (machines(name, address) for name in ("old", "new", "third"))
        frozen = frozen_at(old.begin(), operation, part)
        requests = itertools.count()

        def at(done: str, name: str, frozen=frozen, requests=requests, moment=moment) -> None:
            if next(requests) == moment:
                moments.append((done, name))
                frozen.wake()

        new.before(at)
        new.begin()
        if len(moments) == moment:  # the last of the new job's requests was before
            frozen.wake()
        new.record("of the new attempt", "0009")
        new.end()
        third.begin()
        assert third.journals() == new.journals(), moments[-1:]
        assert third.config() == new.config(), moments[-1:]
        assert third.checkpoints() == new.checkpoints() == new.checkpoints_there(), moments[-1:]
        if frozen.error is not None:
            assert isinstance(frozen.error, SupersededError), frozen.error
        third.end()
        if len(moments) == moment:
            break
    assert ("create", "attempts/0002") in moments
    assert len(moments) > 15


def test_a_seal_that_lost_to_a_segment_counts_that_segment_and_ends_the_journal_after_it(
    machines: Machines,
) -> None:
    old = machines("old").begin()
    old.record("first")
    old.ship()
    names = old.store.names("journal/")
    old.record("second")
    old.ship()
    seal_journals_at(old.store, names)
    assert names == old.store.names("journal/")
    sizes = [names[name] for name in sorted(names)]
    assert sizes == [0, len("first\n"), len("second\n"), 0]


def test_who_is_frozen_in_a_takeover_ends_no_journal_and_no_checkpoint_of_those_who_went_on(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, slow, quick = machines("first").begin(), machines("slow"), machines("quick")
    first.record("first")
    first.ship()

    def others(operation: str, name: str) -> None:
        if (operation, name) == ("names", "") and not quick.attempt:
            quick.begin()
            quick.record("quick", "0002")
            quick.ship()
            frozen.append(Frozen(quick_shipping(), "create", "COMMIT.json"))

    def quick_shipping() -> Machine:
        quick.commit(2)
        return quick

    frozen: list[Frozen] = []
    slow.before(others)
    with pytest.raises(SupersededError, match="attempt 0003 has begun since"):
        slow.begin()
    frozen[0].wake()
    assert frozen[0].error is None
    quick.record("goes on", "0002")
    quick.end()
    third = machines("third").begin()
    assert third.journals() == quick.journals()
    assert third.checkpoints() == quick.checkpoints() == {f"step_00000002-{quick.attempt}"}


@pytest.mark.parametrize("moment", [("names", "checkpoints/")])
def test_who_is_frozen_at_the_start_of_an_attempt_ends_no_checkpoint_of_those_who_went_on(
    moment: tuple[str, str], machines: Machines
) -> None:
    slow, quick = machines("slow"), machines("quick")
    frozen: list[Frozen] = []

    def others(operation: str, name: str) -> None:
        if (operation, name) == moment and not quick.attempt:
            quick.begin().commit(2)
            frozen.append(Frozen(quick, "create", "COMMIT.json"))

    slow.before(others)
    with pytest.raises(SupersededError):
        slow.begin()
    frozen[0].wake()
    assert frozen[0].error is None
    assert quick.checkpoints_there() == {f"step_00000002-{quick.attempt}"}


def beside(machine: Machine) -> list[Path]:
    return [path for path in machine.run_dir.parent.iterdir() if path.is_dir() and path != machine.run_dir]


def test_work_that_was_never_shipped_is_set_aside_and_said_when_the_run_went_on_elsewhere(
    machines: Machines, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = machines("old").begin(), machines("new")
    old.record("shipped")
    old.ship()
    journal = old.record("never shipped").read_bytes()
    folder = old.commit(4)
    new.begin().end()
    again = Machine(old.run.address, old.run_dir)
    again.begin()
    (aside,) = beside(again)
    assert "1 lines of journals and checkpoints of steps 4 that were never shipped" in caplog.text
    assert f"kept in {aside}" in caplog.text
    assert {path.read_bytes() for path in (aside / "journal").iterdir()} == {journal}
    assert (aside / "checkpoints" / folder.name / "COMMIT.json").exists()
    assert list(again.journals().values()) == [b"shipped\n"]
    assert again.checkpoints() == set()
    again.end()


def test_a_copy_that_has_nothing_of_its_own_is_not_kept(
    machines: Machines, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = machines("old").begin(), machines("new")
    old.record("shipped")
    old.commit(2)
    old.end()
    new.begin().commit(4)
    new.end()
    again = Machine(old.run.address, old.run_dir).begin()
    assert beside(again) == []
    assert "never shipped" not in caplog.text
    assert again.checkpoints() == new.checkpoints()
    again.end()


def test_of_disks_that_were_cloned_the_one_that_did_not_go_on_is_made_anew(machines: Machines) -> None:
    original = machines("original").begin()
    original.record("before")
    original.end()
    shutil.copytree(original.run_dir.parent, original.run_dir.parent.with_name("clone"))
    original = Machine(original.run.address, original.run_dir).begin()
    original.record("after", "0002")
    original.end()
    clone = machines("clone")
    clone.begin()
    assert clone.attempt.startswith("0003-")
    assert clone.journals() == original.journals()


def test_a_disk_that_was_cloned_within_an_attempt_has_what_the_original_recorded_later(
    machines: Machines,
) -> None:
    original = machines("original").begin()
    original.record("before")
    original.ship()
    shutil.copytree(original.run_dir.parent, original.run_dir.parent.with_name("clone"))
    original.record("after")
    original.ship()
    clone = machines("clone").begin()
    assert clone.journals() == original.journals()


def test_both_of_two_cloned_disks_cannot_take_a_number(machines: Machines) -> None:
    original = machines("original").begin()
    original.end()
    shutil.copytree(original.run_dir.parent, original.run_dir.parent.with_name("clone"))
    clone, original = machines("clone"), Machine(original.run.address, original.run_dir)
    clone.run.acquire()
    original.begin()
    with pytest.raises(WorldStateError, match="another job's by now"):
        clone.run.begin_attempt()
    clone.lease.confirm = lambda: None  # frozen since it was sure of its lease
    with pytest.raises(SupersededError, match="went on in another working copy, as attempt 0002"):
        clone.run.begin_attempt()
    original.end()
