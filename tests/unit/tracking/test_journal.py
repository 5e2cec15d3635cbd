"""The journal keeps what was written, drops what was torn or rolled back, and loses nothing else."""

import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.tracking.journal import (
    Event,
    Journal,
    Metrics,
    Picture,
    Table,
    committed_step,
    read_journal,
)


def steps(run_dir: Path, kind: type = Metrics) -> list[int]:
    return [r.step for r in read_journal(run_dir) if isinstance(r, kind)]


def test_every_kind_of_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "a1")
    records = [
        Event("start", 0, {"world": 2}),
        Metrics(3, {"train/loss": 0.5, "train/lr": 1e-3}),
        Table("val/iou", 4, ["class", "iou"], [["road", 0.9], ["sky", None]]),
        Picture("val/scene0", 4, "pictures/x.png"),
        Event("commit", 4, {"checkpoint": "step_4"}),
    ]
    for record in records:
        journal.append(record)
    journal.close()
    assert read_journal(tmp_path) == records


def test_a_run_without_a_journal_has_no_records(tmp_path: Path) -> None:
    assert read_journal(tmp_path) == []
    assert committed_step([]) == 0


def test_numpy_scalars_and_nan_survive(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "a1")
    journal.metrics(1, {"loss": np.float32(0.25), "bad": float("nan")})
    (record,) = read_journal(tmp_path)
    assert isinstance(record, Metrics)
    assert record.values["loss"] == 0.25
    assert math.isnan(record.values["bad"])
    journal.close()


def test_a_restart_drops_what_was_recorded_after_the_restored_step(tmp_path: Path) -> None:
    first = Journal(tmp_path, "a1")
    first.event("start", 0)
    for step in range(1, 8):
        first.metrics(step, {"loss": step})
    first.event("commit", 5)
    first.event("commit", 7)
    first.event("rank-lost", 7)
    first.close()
    second = Journal(tmp_path, "b2")
    second.event("start", 5)
    for step in (6, 7, 8):
        second.metrics(step, {"loss": step * 10})
    second.close()

    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6, 7, 8]
    values = [r.values["loss"] for r in read_journal(tmp_path) if isinstance(r, Metrics)]
    assert values == [1, 2, 3, 4, 5, 60, 70, 80]
    assert committed_step(read_journal(tmp_path)) == 5, "the commit of step 7 turned out to be damaged"
    names = [r.name for r in read_journal(tmp_path) if isinstance(r, Event)]
    assert "rank-lost" in names, "a failure did happen, though its steps were rolled back"


def test_a_second_restart_rolls_back_both_earlier_attempts(tmp_path: Path) -> None:
    for attempt, resumed, recorded in (("a", 0, [1, 2, 3]), ("b", 2, [3, 4]), ("c", 1, [2])):
        journal = Journal(tmp_path, attempt)
        journal.event("start", resumed)
        for step in recorded:
            journal.metrics(step, {"x": step})
        journal.close()
    assert steps(tmp_path) == [1, 2]


def test_a_start_before_an_earlier_start_says_what_is_still_whole(tmp_path: Path) -> None:
    for attempt, resumed, last, commits in (("a", 0, 9, [5, 7]), ("b", 7, 9, []), ("c", 5, 8, [])):
        journal = Journal(tmp_path, attempt)
        journal.event("start", resumed)
        for step in range(resumed + 1, last + 1):
            journal.metrics(step, {"x": step})
        for step in commits:
            journal.event("commit", step)
        journal.close()
    records = read_journal(tmp_path)
    assert committed_step(records) == 5, "the checkpoint of step 7, which b began from, is damaged by now"
    assert steps(tmp_path) == list(range(1, 9))
    assert committed_step([*records, Event("commit", 8)]) == 8


def test_an_attempt_that_dies_before_it_starts_rolls_nothing_back(tmp_path: Path) -> None:
    first = Journal(tmp_path, "a")
    first.event("start", 0)
    first.metrics(4, {"x": 1.0})
    first.close()
    Journal(tmp_path, "b").close()
    assert steps(tmp_path) == [4]


@pytest.mark.parametrize("cut", range(1, 30))
def test_a_torn_last_line_is_ignored_wherever_it_was_cut(
    tmp_path: Path, cut: int, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path, "a")
    journal.metrics(1, {"x": 1.0})
    journal.metrics(2, {"x": 2.0})
    journal.close()
    journal.path.write_bytes(journal.path.read_bytes()[:-cut])
    with caplog.at_level(logging.WARNING):
        assert steps(tmp_path) == [1]
    assert not caplog.records, "a killed attempt is nothing to warn about"


def test_a_damaged_line_in_the_middle_costs_that_line_alone_and_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path, "a")
    for step in (1, 2, 3):
        journal.metrics(step, {"x": step})
    journal.close()
    lines = journal.path.read_bytes().split(b"\n")
    lines[1] = lines[1][:10]
    journal.path.write_bytes(b"\n".join(lines))
    assert steps(tmp_path) == [1, 3]
    assert "line 2" in caplog.text


def test_attempts_are_read_in_the_order_in_which_they_began_past_nine(tmp_path: Path) -> None:
    for number in range(12):
        journal = Journal(tmp_path, f"attempt{12 - number}")
        journal.metrics(number, {"x": number})
        journal.close()
    assert steps(tmp_path) == list(range(12))


def test_two_journals_of_one_token_never_share_a_file(tmp_path: Path) -> None:
    first, second = Journal(tmp_path, "same"), Journal(tmp_path, "same")
    assert first.path != second.path
    first.close()
    second.close()


def test_records_survive_the_sudden_death_of_the_writer(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from pipeline.tracking.journal import Journal\n"
        "j = Journal(Path(sys.argv[1]), 'a')\n"
        "for s in range(50): j.metrics(s, {'x': s})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=os.environ | {"PYTHONPATH": str(root)}, check=False
    )
    assert done.returncode == -9
    assert steps(tmp_path) == list(range(50))


def test_a_picture_is_a_png_of_the_same_pixels(tmp_path: Path) -> None:
    image_HW3 = np.random.default_rng(0).integers(0, 256, (7, 9, 3)).astype(np.uint8)
    journal = Journal(tmp_path, "a")
    journal.picture("val/scene 0", 12, image_HW3)
    journal.close()
    (record,) = read_journal(tmp_path)
    assert isinstance(record, Picture)
    assert not Path(record.path).is_absolute()
    stored = cv2.cvtColor(cv2.imread(str(tmp_path / record.path)), cv2.COLOR_BGR2RGB)
    np.testing.assert_array_equal(stored, image_HW3)


def test_lines_are_plain_json_with_the_documented_names(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "a")
    journal.event("commit", 9, checkpoint="step_00000009-a")
    journal.close()
    line = json.loads(journal.path.read_text())
    assert line.pop("time_s") > 1e9
    assert line == {"kind": "event", "name": "commit", "step": 9, "checkpoint": "step_00000009-a"}


def test_what_is_recorded_again_at_the_step_of_a_restart_replaces_what_was_there(tmp_path: Path) -> None:
    for attempt, resumed, miou in (("a", 0, 0.5), ("b", 4, 0.25)):
        journal = Journal(tmp_path, attempt)
        journal.event("start", resumed)
        if not resumed:
            journal.metrics(4, {"loss": 1.0, "both": 1.0})
            journal.event("commit", 4)
        journal.metrics(4, {"val/miou": miou, "both": 2.0})
        journal.table("val/iou", 4, ["class", "iou"], [["road", miou]])
        journal.append(Picture("val/scene0", 4, f"pictures/{attempt}.png"))
        journal.close()
    records = read_journal(tmp_path)
    points = [
        (key, r.step, value) for r in records if isinstance(r, Metrics) for key, value in r.values.items()
    ]
    assert sorted(points) == [("both", 4, 2.0), ("loss", 4, 1.0), ("val/miou", 4, 0.25)]
    assert [r.rows for r in records if isinstance(r, Table)] == [[["road", 0.25]]]
    assert [r.path for r in records if isinstance(r, Picture)] == ["pictures/b.png"]
    assert [r.name for r in records if isinstance(r, Event)] == ["start", "commit", "start"]


def test_a_disk_that_fills_up_in_the_middle_of_a_line_costs_that_line_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path, "a")
    journal.metrics(1, {"x": 1.0})
    file = journal._file

    class Full:
        def __getattr__(self, name: str) -> object:
            return getattr(file, name)

        def write(self, line: memoryview) -> int:
            if len(line) > 5:
                return file.write(line[:5])
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal, "_file", Full())
    with pytest.raises(OSError, match="No space"):
        journal.metrics(22, {"x": 1e9})
    monkeypatch.undo()
    journal.metrics(3, {"x": 3.0})
    journal.close()
    assert steps(tmp_path) == [1, 3]
    assert len(journal.path.read_bytes().splitlines()) == 2
