"""What a loader and its workers tell each other arrives as it was said."""

import json

import pytest

from pipeline import errors
from pipeline.config import DataConfig, StoreConfig
from pipeline.data.crop_writer import Cost
from pipeline.data.dataset import ShardDataset
from pipeline.data.tasks import Reply, Setup, Task
from pipeline.errors import PipelineError


@pytest.mark.parametrize(
    "kind",
    [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, PipelineError)],
)
def test_every_error_arrives_as_the_type_that_was_raised(kind):
    reply = Reply.from_list(json.loads(Reply(7, Cost(0.5, 0.25), kind('of "x"\n')).line()))
    assert (reply.number, reply.cost) == (7, (0.5, 0.25))
    assert type(reply.error) is kind
    assert str(reply.error) == 'of "x"\n'


def test_what_a_worker_is_told_arrives_as_it_was(packed):
    dataset = ShardDataset.open(packed, "train")
    task = Task(3, 1, 0, 12345678901234, dataset.ref(1, 2))
    assert Task.from_list(json.loads(task.line())) == task
    config = DataConfig(loader_workers=2, store=StoreConfig(cache_dir="/x y", attempts=2))
    setup = Setup("s3://bucket/ü", 19, config, 5, 2)
    assert Setup.from_line(setup.line()) == setup


def test_a_server_has_used_up_its_own_tries_before_a_worker_is_called_late():
    config = DataConfig(worker_timeout_s=5.0, store=StoreConfig(timeout_s=3.0, attempts=4))
    assert Setup("/a/folder", 19, config, 0, 1).timeout_s == 5.0
    assert Setup("https://host/shards", 19, config, 0, 1).timeout_s >= 5.0 + 3.0 * 4
