"""When ranks count as hung, by observations alone: no process, no clock."""

from dataclasses import replace

import pytest

from pipeline.config import DeadlineConfig
from pipeline.launch.pulse import Beat, Doing, Place
from pipeline.launch.stall import Sight, Stall, find_stall, seen

DEADLINE = DeadlineConfig(silence_s=5, start_s=900, data_s=150, step_s=10, evaluate_s=3600, checkpoint_s=900)
LOOK_S = 0.5


class Rank:
    """A rank as it would be seen, twice a second, by somebody with a clock of his own."""

    def __init__(self, doing: Doing = "step", steps: int = 100) -> None:
        self.beat = Beat(Place("node", 1, 0.0, ""), ticks=1, moves=1000, steps=steps, doing=doing)
        self.sight = Sight(self.beat)

    def lives(self, seconds: float, *, silent: bool = False) -> None:
        """It is seen for a while without a move."""
        for _ in range(round(seconds / LOOK_S)):
            self.beat = self.beat if silent else replace(self.beat, ticks=self.beat.ticks + 1)
            self.sight = seen(self.sight, self.beat, LOOK_S)

    def moves(self, doing: Doing) -> None:
        """Its loop enters a phase."""
        steps = self.beat.steps + (doing == "step")
        self.beat = replace(
            self.beat, ticks=self.beat.ticks + 1, moves=self.beat.moves + 1, steps=steps, doing=doing
        )
        self.sight = seen(self.sight, self.beat, LOOK_S)


def stall(*ranks: Rank) -> Stall | None:
    return find_stall({rank: seen_rank.sight for rank, seen_rank in enumerate(ranks)}, DEADLINE)


def test_silent_process_is_named_after_five_seconds_in_a_step_while_its_peer_waits() -> None:
    waiting, stopped = Rank(), Rank()
    waiting.lives(5.0)
    stopped.lives(5.0, silent=True)
    assert stall(waiting, stopped) is None
    waiting.lives(0.5)
    stopped.lives(0.5, silent=True)
    assert stall(waiting, stopped) == Stall((1,), "step", 5.5, silent=True)
    assert str(stall(waiting, stopped)) == "rank 1 hung (silent for 5.5s in step)"


def test_ranks_that_live_and_stand_in_a_step_hang_after_the_step_deadline_and_not_before() -> None:
    ranks = Rank(), Rank()
    for rank in ranks:
        rank.lives(10.0)
    assert stall(*ranks) is None
    for rank in ranks:
        rank.lives(0.5)
    assert stall(*ranks) == Stall((0, 1), "step", 10.5, silent=False)


@pytest.mark.parametrize(
    ("doing", "steps", "allowed_s"),
    [
        ("start", 0, 900), ("step", 1, 900), ("data", 2, 900), ("data", 3, 150), ("step", 3, 10),
        ("evaluate", 100, 3600), ("evaluate", 0, 3600), ("checkpoint", 100, 900), ("finish", 100, 900),
    ],
)  # fmt: skip
def test_each_phase_has_its_deadline_and_the_first_steps_that_of_the_start(
    doing: Doing, steps: int, allowed_s: float
) -> None:
    rank = Rank(doing, steps)
    rank.lives(allowed_s)
    assert stall(rank) is None
    rank.lives(LOOK_S)
    assert stall(rank) == Stall((0,), doing, allowed_s + LOOK_S, silent=False)


@pytest.mark.parametrize("doing", ["evaluate", "checkpoint", "data"])
def test_rank_that_does_something_long_alone_gets_nobody_killed_who_waits_for_it(doing: Doing) -> None:
    busy, waiting = Rank(doing), Rank("step")
    for _ in range(5):
        busy.lives(25.0)
        waiting.lives(25.0)
        assert stall(busy, waiting) is None


def test_rank_that_others_wait_for_is_named_not_those_that_wait() -> None:
    hung, waiting = Rank("data"), Rank("step")
    hung.lives(151.0)
    waiting.lives(151.0)
    assert stall(hung, waiting) == Stall((0,), "data", 151.0, silent=False)


def test_slow_network_is_allowed_twenty_times_its_slowest_recent_step() -> None:
    rank = Rank("data")
    for _ in range(4):  # ResNet-101 on a CPU
        rank.moves("step")
        rank.lives(15.0)
        rank.moves("data")
    rank.moves("step")
    rank.lives(20 * 15.5)
    assert stall(rank) is None
    rank.lives(20.0)
    assert stall(rank) is not None


def test_slow_step_is_forgotten_after_a_few_quick_ones() -> None:
    rank = Rank("data")
    for seconds in (30.0, *[0.0] * 8):
        rank.moves("step")
        rank.lives(seconds)
        rank.moves("data")
    rank.moves("step")
    rank.lives(10.5)
    assert stall(rank) is not None


def test_compiling_first_steps_do_not_make_later_ones_patient() -> None:
    rank = Rank("data", steps=0)
    for seconds in (300.0, 200.0, 0.0):
        rank.moves("step")
        rank.lives(seconds)
        assert stall(rank) is None
        rank.moves("data")
    rank.moves("step")
    rank.lives(10.5)
    assert stall(rank) is not None


@pytest.mark.parametrize(("doing", "steps"), [("start", 0), ("step", 1), ("evaluate", 9), ("checkpoint", 9)])
def test_silence_outside_of_settled_steps_is_borne_for_a_minute(doing: Doing, steps: int) -> None:
    rank = Rank(doing, steps)
    rank.lives(60.0, silent=True)
    assert stall(rank) is None
    rank.lives(0.5, silent=True)
    assert stall(rank) == Stall((0,), doing, 60.5, silent=True)


def test_process_whose_signs_of_life_come_late_by_habit_is_borne_with() -> None:
    starved = Rank()
    for doing in ("data", "step", "data", "step"):
        starved.lives(3.0, silent=True)
        starved.moves(doing)  # type: ignore[arg-type]  # literals
    starved.lives(8 * 3.5, silent=True)
    assert stall(starved) is None
    starved.lives(LOOK_S, silent=True)
    assert stall(starved) == Stall((0,), "step", 28.5, silent=True)


def test_rank_whose_signs_of_life_are_late_lives_as_long_as_the_others_make_steps_with_it() -> None:
    """As on a node whose network is full of a checkpoint: a step needs all ranks."""
    writing, other = Rank(), Rank()
    for doing in ("data", "step") * 20:
        writing.lives(1.0, silent=True)
        other.lives(1.0)
        other.moves(doing)  # type: ignore[arg-type]  # literals
        assert stall(writing, other) is None
    writing.lives(5.0, silent=True)
    other.lives(5.0)
    assert stall(writing, other) is None
    writing.lives(LOOK_S, silent=True)
    other.lives(LOOK_S)
    assert stall(writing, other) == Stall((0,), "step", 45.5, silent=True)


def test_all_ranks_that_are_silent_at_once_are_named_as_soon_as_one_alone() -> None:
    ranks = Rank(), Rank()
    for rank in ranks:
        rank.lives(5.5, silent=True)
    assert stall(*ranks) == Stall((0, 1), "step", 5.5, silent=True)


def test_ranks_that_ended_are_not_watched() -> None:
    ended, at_work = Rank("ended"), Rank("step")
    ended.lives(5000.0, silent=True)
    assert stall(ended) is None
    assert stall(ended, at_work) is None
    assert stall() is None


def test_process_that_took_the_place_of_another_begins_anew() -> None:
    rank = Rank()
    rank.lives(100.0, silent=True)
    rank.beat = replace(rank.beat, place=Place("node", 2, 0.0, ""))
    rank.sight = seen(rank.sight, rank.beat, LOOK_S)
    assert stall(rank) is None
