"""The points of a campaign are drawn as it promises."""

from collections import Counter

import pytest

from tests.chaos.points import EXACT_WORLD, PHASES, STEPS, UPLOAD_PHASES, draw_points


@pytest.mark.parametrize("launcher", PHASES)
def test_a_seed_stands_for_its_points_and_fewer_are_the_first_of_more(launcher: str) -> None:
    points = draw_points(3, 80, launcher)
    assert points == draw_points(3, 80, launcher)
    assert points[:30] == draw_points(3, 30, launcher)
    assert points != draw_points(4, 80, launcher)


@pytest.mark.parametrize(("launcher", "count"), [("torchrun", 160), ("ray", 40), ("remote", 12)])
def test_every_phase_has_its_turn_and_half_of_the_resumes_are_at_another_world_size(
    launcher: str, count: int
) -> None:
    points = draw_points(0, count, launcher)
    times = Counter(point.strike.phase for point in points)
    assert set(times) == set(PHASES[launcher])
    assert max(times.values()) - min(times.values()) <= 1
    elastic = [point for point in points if point.determinism == "elastic"]
    assert 0.4 < sum(point.moves for point in elastic) / len(elastic) < 0.6
    for point in points:
        assert all(
            attempt.strike is None or attempt.strike.rank < attempt.world for attempt in point.attempts
        )
        assert all(attempt.strike is None or attempt.strike.step <= STEPS for attempt in point.attempts)
        assert all(attempt.strike and attempt.strike.ends for attempt in point.attempts[:-1])
        assert point.attempts[-1].strike is None or not point.attempts[-1].strike.ends, "it ends"
        if point.determinism == "exact":
            assert {attempt.world for attempt in point.attempts} == {EXACT_WORLD}
    assert len({point.name for point in points}) == count


def test_the_machine_is_gone_in_half_of_the_uploads_that_are_cut_off() -> None:
    points = draw_points(0, 2 * len(PHASES["remote"]), "remote")
    gone = Counter((p.strike.phase, p.strike.machine_gone) for p in points)
    assert all(gone[phase, True] == gone[phase, False] == 1 for phase in UPLOAD_PHASES)
