"""What the driver records of a restart."""

from pathlib import Path

import pytest

from pipeline.launch.attempt_failure import LostError, note_failure, note_restart
from pipeline.tracking.journal import COMMIT, START, Event, Journal, read_journal


@pytest.mark.parametrize(("restored", "repeated"), [(40, 4), (20, 24)])
def test_restart_is_noted_at_the_step_that_the_workers_restored(
    restored: int, repeated: int, tmp_path: Path
) -> None:
    driver, first = Journal(tmp_path, "driver"), Journal(tmp_path, "a0")
    first.event(START, 0)
    for step in (20, 40):
        first.event(COMMIT, step, checkpoint=f"step_{step}")
    first.metrics(44, {"train/loss": 1.0})
    failure = note_failure(tmp_path, driver, LostError("rank 1 lost", "step", 0.0), None)
    second = Journal(tmp_path, "a1")
    second.event(START, restored)  # 20 where the checkpoint of step 40 is damaged
    second.event(COMMIT, 60, checkpoint="step_60")
    note_restart(tmp_path, driver, failure)
    (noted,) = [r for r in read_journal(tmp_path) if isinstance(r, Event) and r.name == "restart"]
    assert (noted.step, noted.fields["repeated"], noted.fields["lost"]) == (restored, repeated, "rank 1 lost")
    for journal in (driver, first, second):
        journal.close()
