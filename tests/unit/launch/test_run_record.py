"""What MLflow is told of a run's data."""

from pathlib import Path

from pipeline.launch.publish import _data
from pipeline.launch.run_record import describe
from pipeline.launch.train_job import Request
from pipeline.recipes import recipe
from pipeline.settings import with_settings


def told(shards: Path, tmp_path: Path, **data: str) -> list[tuple[str, str, int, str]]:
    config = with_settings(recipe("laptop"), {f"data.{name}": value for name, value in data.items()})
    request = Request(config, str(shards), tmp_path, "x", None, preflight_only=False)
    return [(i.context, i.split, i.samples, i.part) for i in describe(request, {}).datasets]


def test_the_record_tells_which_drives_were_held_out_and_evaluated(shards: Path, tmp_path: Path) -> None:
    assert told(shards, tmp_path) == [("training", "train", 4, ""), ("evaluation", "val", 2, "")]
    assert told(shards, tmp_path, held_out="train_000001,train_000003") == [
        ("training", "train", 2, "without train_000001, train_000003"),
        ("evaluation", "train", 2, "train_000001, train_000003 alone"),
    ]
    unindexed = told(shards, tmp_path, unindexed_train="/x/{0..3}.tar")
    assert unindexed == [("evaluation", "val", 2, "")]


def test_a_model_card_tells_what_its_scores_are_of() -> None:
    assert _data(recipe("laptop").data) == "splits train and val"
    config = with_settings(recipe("laptop"), {"data.held_out": "ulm,bonn"})
    said = "split train without ulm, bonn; scores are of ulm, bonn, which were held out"
    assert _data(config.data) == said
