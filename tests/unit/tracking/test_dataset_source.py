"""MLflow takes data sets of one name and digest for the same one: parts of a split must not be."""

import json
from dataclasses import replace

from pipeline.tracking.dataset_source import DIGEST_LENGTH, DatasetInfo, dataset_input

MANIFEST = "ab" * 32
WHOLE = DatasetInfo("city", "/data/city", "train", "training", MANIFEST, 367, 1, 9, ("road", "sky"))


def test_parts_of_a_split_are_data_sets_of_their_own_and_say_which() -> None:
    parts = [
        WHOLE,
        replace(WHOLE, part="without camvid_000006", samples=266),
        replace(WHOLE, part="camvid_000006 alone", samples=101, context="evaluation"),
        replace(WHOLE, part="without camvid_000001", samples=305),
    ]
    made = [dataset_input(info).dataset for info in parts]
    assert len({(dataset.name, dataset.digest) for dataset in made}) == len(parts)
    assert all(len(dataset.digest) == DIGEST_LENGTH for dataset in made)
    sources = [json.loads(dataset.source) for dataset in made]
    assert [source.get("part") for source in sources] == [None, *(info.part for info in parts[1:])]
    assert {source["manifest_sha256"] for source in sources} == {MANIFEST}


def test_a_whole_split_is_recorded_as_ever() -> None:
    dataset = dataset_input(WHOLE).dataset
    assert (dataset.name, dataset.digest) == ("city-train", MANIFEST[:DIGEST_LENGTH])
    assert json.loads(dataset.source) == {
        "root": "/data/city", "split": "train", "manifest_sha256": MANIFEST, "samples": 367, "shards": 1,
        "bytes": 9, "classes": ["road", "sky"],
    }  # fmt: skip
