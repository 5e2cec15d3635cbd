import pytest

from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.launch.workers import Room, Workers, plan_workers
from pipeline.launch.world_size import WorldRange
from pipeline.settings import with_settings


def config(**settings: object) -> Config:
    return with_settings(
        Config(), {"train.batch_global": 16} | {k.replace("__", "."): v for k, v in settings.items()}
    )


def exactly(num: int | None) -> WorldRange | None:
    return WorldRange(num, num) if num else None


@pytest.mark.parametrize(
    ("typed", "settings", "room", "expected"),
    [
        (None, {}, Room(2, 0), Workers(2, 1, use_gpu=False)),
        (None, {}, Room(64, 0), Workers(2, 1, use_gpu=False)),
        (None, {}, Room(1, 0), Workers(1, 1, use_gpu=False)),
        (4, {}, Room(4, 0), Workers(4, 1, use_gpu=False)),
        (None, {"data__loader_workers": 2}, Room(16, 4), Workers(4, 3, use_gpu=True)),
        (2, {}, Room(16, 4), Workers(2, 1, use_gpu=True)),
        (8, {}, Room(16, 4), Workers(8, 1, use_gpu=False)),
        (None, {"train__batch_global": 8}, Room(16, 3), Workers(2, 1, use_gpu=True)),
        (None, {"train__batch_global": 8}, Room(16, 6), Workers(4, 1, use_gpu=True)),
        (None, {"train__batch_global": 8}, Room(16, 16), Workers(8, 1, use_gpu=True)),
        (None, {"train__batch_global": 6, "train__accumulation": 2}, Room(8, 4), Workers(3, 1, use_gpu=True)),
        (None, {"train__determinism": "elastic"}, Room(64, 7), Workers(4, 1, use_gpu=True)),
        (None, {"train__determinism": "elastic"}, Room(64, 16), Workers(8, 1, use_gpu=True)),
        (None, {"train__batch_global": 5}, Room(8, 0), Workers(1, 1, use_gpu=False)),
        (2, {"launch__use_gpu": "no"}, Room(16, 4), Workers(2, 1, use_gpu=False)),
    ],
)
def test_workers_are_the_typed_number_or_what_the_cluster_offers(
    typed: int | None, settings: dict[str, object], room: Room, expected: Workers
) -> None:
    assert plan_workers(exactly(typed), config(**settings), room) == expected


@pytest.mark.parametrize(
    ("typed", "settings", "room", "words"),
    [
        (3, {}, Room(2, 0), "--workers 2 fits"),
        (2, {"data__loader_workers": 1}, Room(2, 0), "--workers 1 fits"),
        (1, {"data__loader_workers": 4}, Room(2, 0), "; type --data.loader_workers 1, or take a larger"),
        (1, {"data__loader_workers": 2}, Room(1, 0), "; type --data.loader_workers 0, or take a larger"),
        (1, {"launch__threads_per_worker": 4}, Room(2, 0), "; type --launch.threads_per_worker 2, or"),
        (
            1,
            {"launch__threads_per_worker": 4, "data__loader_workers": 1},
            Room(2, 0),
            "; type --data.loader_workers 0 --launch.threads_per_worker 2, or",
        ),
        (8, {"launch__use_gpu": "yes"}, Room(64, 4), "--workers 4 fits"),
        (1, {"launch__use_gpu": "yes"}, Room(64, 0), "0 GPUs; type --launch.use_gpu no"),
        (None, {"launch__use_gpu": "yes"}, Room(64, 0), "0 GPUs; type --launch.use_gpu no"),
        (3, {}, Room(4, 0), "try --train.batch_global 15"),
        (3, {"train__determinism": "elastic"}, Room(4, 0), "8 do not divide by 3 workers; take 1, 2, 4, 8"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_number_that_does(
    typed: int | None, settings: dict[str, object], room: Room, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        plan_workers(exactly(typed), config(**settings), room)


@pytest.mark.parametrize(
    ("least", "most", "room", "expected"),
    [(1, 8, Room(64, 0), 8), (1, 8, Room(7, 0), 4), (2, 3, Room(64, 0), 2), (1, 8, Room(64, 2), 2)],
)
def test_of_a_range_the_most_that_fit_and_divide_the_batch_are_taken(
    least: int, most: int, room: Room, expected: int
) -> None:
    assert plan_workers(WorldRange(least, most), config(), room).num == expected


def test_range_whose_fewest_do_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--workers 4 does not fit.*--workers 2 fits"):
        plan_workers(WorldRange(4, 8), config(), Room(2, 0))
