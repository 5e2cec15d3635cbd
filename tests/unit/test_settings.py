"""Settings by dotted name: set, refused, recorded and read back."""

import json

import pytest

from pipeline.config import Config, TrainConfig
from pipeline.errors import ConfigError
from pipeline.recipes import RECIPES, recipe
from pipeline.settings import config_hash, flatten, from_dict, to_dict, with_settings


@pytest.mark.parametrize("name", RECIPES)
def test_a_recorded_recipe_reads_back_equal(name):
    config = recipe(name)
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert with_settings(Config(), flatten(config)) == config


def test_text_becomes_the_fields_type():
    typed = {"model.head.tau": "20", "train.steps": "7", "train.sync_batch_norm": "true", "optim.name": "sgd"}
    config = with_settings(recipe("laptop"), typed)
    assert config.model.head.tau == 20.0
    assert isinstance(config.model.head.tau, float)
    assert (config.train.steps, config.train.sync_batch_norm, config.optim.name) == (7, True, "sgd")


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ({"model.head.tua": "3"}, r"unknown setting --model\.head\.tua \(did you mean model\.head\.tau\?\)"),
        ({"model.head.kind": "plan"}, r"--model\.head\.kind takes ccs, plain, .*; got 'plan' .*plain\?"),
        ({"model.backbone.depth": "35"}, "takes 10, 18, 34, 50, 101"),
        ({"train.steps": "ten"}, r"--train\.steps takes int, got 'ten'"),
        ({"train.steps": 1.5}, "takes int"),
        ({"optim.lr": "nan"}, "finite"),
        ({"train.sync_batch_norm": "maybe"}, "true or false"),
        ({"optim.lr": "-1"}, r"optim\.lr must be above 0"),
        ({"data.augment.scale_min": "3"}, "scale_min <= scale_max"),
        ({"model": "x"}, "unknown setting --model"),
        ({"train.steps": "8", "train.profile_steps": "2"}, r"try --train\.steps 12"),
    ],
)
def test_what_cannot_be_set_is_one_clear_line(typed, message):
    with pytest.raises(ConfigError, match=message) as error:
        with_settings(recipe("laptop"), typed)
    assert "\n" not in str(error.value)


WAITS = ["launch.collective_timeout_s", "launch.workers_wait_s", "tracking.wait_s"]
WAITS += [name for name in flatten(Config()) if name.startswith("launch.deadline.")]


@pytest.mark.parametrize("name", WAITS)
def test_waits_are_a_second_to_a_week(name):
    week_s = 604800
    assert week_s * 1000 < 2**31, "in milliseconds it fits whatever torch and the sockets below count with"
    for seconds in (1, week_s):
        assert flatten(with_settings(Config(), {name: str(seconds)}))[name] == seconds
    for seconds in (0, week_s + 1, 10**16):
        with pytest.raises(
            ConfigError, match=rf"{name} must be at least 1 second, at most 604800 \(a week\)"
        ):
            with_settings(Config(), {name: str(seconds)})


def test_unknown_recipes_name_the_nearest():
    with pytest.raises(ConfigError, match=r"did you mean camvid\?"):
        recipe("camvd")


def test_the_hash_follows_numbers_and_not_the_cluster():
    config = recipe("laptop")
    assert config_hash(with_settings(config, {"model.head.tau": 16})) != config_hash(config)
    assert config_hash(with_settings(config, {"launch.max_failures": 9})) == config_hash(config)
    elsewhere = {"data.store.cache_dir": "/nvme", "data.loader_workers": 3, "data.quarantine_max": 1}
    assert config_hash(with_settings(config, elsewhere)) == config_hash(config)


def test_a_recorded_config_that_lacks_settings_is_refused():
    values = to_dict(recipe("laptop"))
    del values["optim"]["lr"]
    with pytest.raises(ConfigError, match=r"lacks optim\.lr"):
        from_dict(values)


def test_virtual_shards_are_dealt_to_any_world_that_divides_them():
    train = TrainConfig(batch_global=24, determinism="elastic", virtual_shards=12, accumulation=5)
    for world in (1, 2, 3, 4, 6, 12):
        assert train.micro_batches_per_rank(world) * world == 12
        assert train.micro_batch_per_rank(world) == 2
    for world in (5, 8, 24):
        with pytest.raises(ConfigError, match=f"12 do not divide by {world} workers; take 1, 2, 3, 4, 6, 12"):
            train.micro_batch_per_rank(world)
    for mode in ("off", "exact"):
        assert TrainConfig(determinism=mode, accumulation=5).micro_batches_per_rank(3) == 5


def test_what_contradicts_elastic_is_refused():
    with pytest.raises(ConfigError, match=r"try --train\.sync_batch_norm false"):
        TrainConfig(determinism="elastic", sync_batch_norm=True)
    with pytest.raises(
        ConfigError, match=r"12 does not divide by 8 virtual shards; try --train\.virtual_shards 4"
    ):
        TrainConfig(determinism="elastic", batch_global=12)
    TrainConfig(determinism="exact", sync_batch_norm=True, batch_global=12)


@pytest.mark.parametrize("mode", ["exact", "elastic"])
def test_shards_without_an_order_promise_no_bits(mode):
    with pytest.raises(ConfigError, match=r"unindexed shards have not; index them with"):
        with_settings(recipe("laptop"), {"data.unindexed_train": "/s/*.tar", "train.determinism": mode})


def test_a_global_batch_that_does_not_divide_names_one_that_does():
    assert TrainConfig(batch_global=12, accumulation=2).micro_batch_per_rank(3) == 2
    with pytest.raises(ConfigError, match=r"--train\.batch_global 9"):
        TrainConfig(batch_global=8).micro_batch_per_rank(3)
