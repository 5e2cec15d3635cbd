"""Incidents and goodput of runs whose times are written by hand."""

from pathlib import Path

import pytest

from pipeline.tracking.incidents import Incident, read_account
from pipeline.tracking.journal import Event, Journal, Metrics
from pipeline.tracking.report import write_report


def attempt(run_dir: Path, name: str, began_s: float, steps: range, *, closed: bool = False) -> None:
    """An attempt of one step a second that records each, from the first of `steps` up to the last."""
    journal = Journal(run_dir, name)
    journal.append(Event("start", steps.start, {}, began_s))
    for number, step in enumerate(steps, start=1):
        journal.append(Metrics(step + 1, {"train/loss": 1.0}, began_s + number))
    if closed:
        journal.append(Event("phases", steps.stop, {"seconds": {}}, began_s + len(steps)))
    journal.close()


def test_run_without_a_failure_has_no_incident_and_a_goodput_of_one(tmp_path: Path) -> None:
    Journal(tmp_path, "driver-abc").close()
    attempt(tmp_path, "0001-abc", 1000.0, range(40), closed=True)
    account = read_account(tmp_path)
    assert account.incidents == ()
    assert account.goodput == pytest.approx(1.0)
    assert account.line() is None
    assert account.values() == {"goodput": 1.0, "incidents": []}


def test_restart_costs_its_time_and_the_steps_that_were_repeated(tmp_path: Path) -> None:
    driver = Journal(tmp_path, "driver-abc")
    attempt(tmp_path, "0001-abc", 1000.0, range(24))
    driver.event("failure", 20, lost="rank 1 hung", phase="step", stood_s=5.0, reached=24)
    driver.event("restart", 20, lost="rank 1 hung", seconds=3.0, repeated=4)
    attempt(tmp_path, "0002-abc", 5000.0, range(20, 52), closed=True)  # another node, another clock
    driver.close()
    account = read_account(tmp_path)
    assert account.incidents == (Incident(20, "rank 1 hung", "step", 8.0, 4),)
    # 20 s and 32 s counted; 4 s were repeated, 5 s stood still, 3 s went to the restart.
    assert account.goodput == pytest.approx((20 + 32) / (20 + 32 + 4 + 5 + 3))
    assert account.line() == "1 incident: 8.0s down, 4 steps repeated, goodput 0.81"


def test_steps_after_the_last_point_of_a_curve_are_lost_time_too(tmp_path: Path) -> None:
    """A curve has a point every ten steps: what was done since then, up to the failure, is no gain."""
    driver = Journal(tmp_path, "driver-abc")
    first = Journal(tmp_path, "0001-abc")
    first.append(Event("start", 0, {}, 1000.0))
    for step in (10, 20):
        first.append(Metrics(step, {"train/loss": 1.0}, 1000.0 + step))
    driver.event(
        "failure",
        20,
        lost="rank 1 lost",
        phase="step",
        stood_s=0.0,
        reached=29,
        attempt="0001-abc",
        worked_s=29.5,
    )
    driver.event("restart", 20, lost="rank 1 lost", seconds=3.0, repeated=9)
    attempt(tmp_path, "0002-abc", 5000.0, range(20, 52), closed=True)
    driver.close()
    first.close()
    account = read_account(tmp_path)
    assert account.incidents == (Incident(20, "rank 1 lost", "step", 3.0, 9),)
    assert account.goodput == pytest.approx((20 + 32) / (29.5 + 32 + 3))


def test_failure_after_which_training_never_began_is_an_incident_without_a_way_back(tmp_path: Path) -> None:
    driver = Journal(tmp_path, "driver-abc")
    attempt(tmp_path, "0001-abc", 1000.0, range(10))
    lost = {"phase": None, "stood_s": 0.0, "reached": 10}
    driver.event("failure", 0, lost="rank 0 lost", **lost)
    driver.event("failure", 0, lost="the worker group failed (ActorDiedError)", **lost)
    driver.event("restart", 0, lost="…", seconds=30.0, repeated=10)
    attempt(tmp_path, "0003-abc", 1100.0, range(10), closed=True)
    driver.close()
    account = read_account(tmp_path)
    assert [(i.cause, i.recover_s) for i in account.incidents] == [
        ("rank 0 lost", None), ("the worker group failed (ActorDiedError)", 30.0),
    ]  # fmt: skip
    assert account.goodput == pytest.approx(10 / (10 + 10 + 30))


@pytest.mark.parametrize("closed", [False, True])
def test_lost_driver_is_one_incident_whether_or_not_its_ranks_ended_in_good_order(
    closed: bool, tmp_path: Path
) -> None:
    Journal(tmp_path, "driver-abc").close()
    attempt(tmp_path, "0001-abc", 1000.0, range(24), closed=closed)
    Journal(tmp_path, "driver-bbb").close()  # lost before an attempt of its began
    driver = Journal(tmp_path, "driver-def")
    attempt(tmp_path, "0002-def", 1034.0, range(20, 30))
    driver.event("failure", 20, lost="rank 1 lost", phase="step", stood_s=0.0, reached=30)
    driver.event("restart", 20, lost="rank 1 lost", seconds=3.0, repeated=10)
    attempt(tmp_path, "0003-def", 1050.0, range(20, 40), closed=True)
    driver.event("job ended", 40)
    driver.close()
    account = read_account(tmp_path)
    assert account.incidents == (
        Incident(20, "driver lost", None, 10.0, 4), Incident(20, "rank 1 lost", "step", 3.0, 10),
    )  # fmt: skip
    assert account.goodput == pytest.approx(40 / (40 + 4 + 10 + 10 + 3))


def test_clocks_that_contradict_each_other_leave_the_time_of_a_lost_driver_unknown(tmp_path: Path) -> None:
    Journal(tmp_path, "driver-abc").close()
    attempt(tmp_path, "0001-abc", 5000.0, range(24))
    Journal(tmp_path, "driver-def").close()
    attempt(tmp_path, "0002-def", 1000.0, range(20, 40), closed=True)  # another node, another clock
    account = read_account(tmp_path)
    assert account.incidents == (Incident(20, "driver lost", None, None, 4),)
    assert account.goodput == pytest.approx(40 / 44)


def test_driver_that_is_lost_on_its_way_to_a_restart_is_an_incident_beside_that_failure(
    tmp_path: Path,
) -> None:
    driver = Journal(tmp_path, "driver-abc")
    attempt(tmp_path, "0001-abc", 1000.0, range(10))
    driver.event("failure", 0, lost="rank 1 lost", phase="step", stood_s=0.0, reached=10)
    driver.close()
    Journal(tmp_path, "driver-def").close()
    attempt(tmp_path, "0002-def", 1040.0, range(10), closed=True)
    found = [(i.cause, i.recover_s, i.repeated) for i in read_account(tmp_path).incidents]
    assert found == [("rank 1 lost", None, None), ("driver lost", 30.0, 10)]


def test_attempt_that_was_killed_without_any_driver_is_an_incident_too(tmp_path: Path) -> None:
    attempt(tmp_path, "0001-9f3c", 1000.0, range(10))  # torchrun
    attempt(tmp_path, "0002-77aa", 1015.0, range(10, 20), closed=True)
    assert read_account(tmp_path).incidents == (Incident(10, "the job died", None, 5.0, 0),)


@pytest.mark.parametrize("noted", [True, False])
def test_job_that_ended_by_itself_or_gave_up_is_not_said_to_have_died(noted: bool, tmp_path: Path) -> None:
    driver = Journal(tmp_path, "driver-abc")
    attempt(tmp_path, "0001-abc", 1000.0, range(10), closed=not noted)
    if noted:
        driver.event("failure", 10, lost="rank 0 lost", phase="data", stood_s=0.0, reached=10)
    driver.event("job ended", 10)
    driver.close()
    Journal(tmp_path, "driver-def").close()
    attempt(tmp_path, "0001-def", 9000.0, range(10, 20), closed=True)
    incidents = read_account(tmp_path).incidents
    assert incidents == ((Incident(10, "rank 0 lost", "data", None, None),) if noted else ())


def test_run_that_did_not_begin_has_no_goodput(tmp_path: Path) -> None:
    assert read_account(tmp_path).values() == {"goodput": None, "incidents": []}
    Journal(tmp_path, "driver-abc").close()
    assert read_account(tmp_path).goodput is None


def test_report_shows_the_incidents_and_what_they_cost(tmp_path: Path) -> None:
    attempt(tmp_path, "0001-a", 1000.0, range(10))
    attempt(tmp_path, "0002-b", 1015.0, range(6, 20), closed=True)
    path = write_report(tmp_path, "Run x", {}, {})
    assert path is not None
    page = path.read_text()
    assert "<h2>Incidents</h2>" in page
    assert "<td>the job died</td><td></td><td>5</td><td>4</td>" in page
    assert "1 incident: 5.0s down, 4 steps repeated" in page
