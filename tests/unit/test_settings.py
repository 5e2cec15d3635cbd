"""Settings by dotted name: set, refused, recorded and read back."""

import json

import pytest

from pipeline.config import Config, TrainConfig
from pipeline.errors import ConfigError
from pipeline.recipes import RECIPES, recipe
from pipeline.settings import (
    config_hash,
    flatten,
    from_dict,
    refuse_idle_settings,
    to_dict,
    with_settings,
)


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
        ({"model.head.kind": "plan"}, r"--model\.head\.kind takes ccs, plain; got 'plan' .*plain\?"),
        ({"model.backbone.depth": "34"}, "takes 18, 50, 101"),
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


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (
            {"model.head.kind": "plain", "model.head.tau": "20"},
            "no class centers: leave out --model.head.tau",
        ),
        ({"model.head.fusion": "off", "model.head.n0": "0.01"}, "no scene centers"),
        ({"model.head.alpha": "0.5"}, "fusion gate"),
        ({"data.prefetch": "8"}, "loader_workers"),
        ({"optim.warmup_steps": "9999"}, "never ends"),
        ({"model.head.lambda_inter": "0", "model.head.delta": "0.1"}, "lambda_inter is 0"),
        ({"model.head.lambda_intra": "0", "model.head.q": "1"}, "lambda_intra is 0"),
    ],
)
def test_a_typed_setting_that_would_be_ignored_is_refused(typed, message):
    config = with_settings(recipe("laptop"), typed)
    with pytest.raises(ConfigError, match=message):
        refuse_idle_settings(config, typed)
    refuse_idle_settings(config, [next(iter(typed))] if len(typed) > 1 else [])


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


def test_a_global_batch_that_does_not_divide_names_one_that_does():
    assert TrainConfig(batch_global=12, accumulation=2).micro_batch_per_rank(3) == 2
    with pytest.raises(ConfigError, match=r"--train\.batch_global 9"):
        TrainConfig(batch_global=8).micro_batch_per_rank(3)
