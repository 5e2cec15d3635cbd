"""What people write of a space means what it says, and what cannot be is refused before a trial starts."""

import dataclasses

import pytest

from pipeline.errors import ConfigError
from pipeline.idle_settings import RULES, refuse_idle_settings
from pipeline.recipes import RECIPES, laptop
from pipeline.search.active import active_settings, trial_name
from pipeline.search.corners import check_corners
from pipeline.search.draw import draw_random
from pipeline.search.presets import PRESETS
from pipeline.search.records import Dimension
from pipeline.search.space import defaults_of, read_dimension, read_space, spec_of
from pipeline.settings import flatten, with_settings

CONFIG = laptop()
TAU, INTER, FORM = "model.head.tau", "model.head.lambda_inter", "model.head.inter_form"


@pytest.mark.parametrize(
    ("name", "spec", "dimension"),
    [
        (TAU, "log:5:40", Dimension(TAU, low=5.0, high=40.0, log=True)),
        ("model.head.alpha", "0:1", Dimension("model.head.alpha", low=0.0, high=1.0)),
        (FORM, "hinge, softmax", Dimension(FORM, ("hinge", "softmax"))),
        (INTER, "0 | log:0.001:3", Dimension(INTER, (0.0,), 0.001, 3.0, log=True)),
        ("model.head.p", "1,2", Dimension("model.head.p", (1, 2))),
        ("optim.warmup_steps", "0:40", Dimension("optim.warmup_steps", (), 0.0, 40.0, whole=True)),
        ("model.head.learn_tau", "false,true", Dimension("model.head.learn_tau", (False, True))),
    ],
)
def test_a_spec_has_the_types_of_its_field_and_is_written_as_it_is_read(name, spec, dimension):
    assert read_dimension(CONFIG, name, spec) == dimension
    assert [type(v) for v in read_dimension(CONFIG, name, spec).values] == [type(v) for v in dimension.values]
    assert read_dimension(CONFIG, name, spec_of(dimension)) == dimension


@pytest.mark.parametrize(
    ("name", "spec", "said"),
    [
        ("model.head.taus", "log:5:40", "did you mean model.head.tau"),
        (TAU, "log:0:40", "above 0 where it is log"),
        (TAU, "40:5", "lower end below"),
        (TAU, "log:5:x", "cannot read log:5:x"),
        (TAU, "12", "one value is no choice"),
        (TAU, "1:2|3:4", "at most one range"),
        (FORM, "hinge,hing", "did you mean hinge"),
        (FORM, "1:2", "is no number"),
        (FORM, "hinge,hinge", "twice"),
        ("optim.warmup_steps", "0.5:3", "whole numbers"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(name, spec, said):
    with pytest.raises(ConfigError) as refused:
        read_dimension(CONFIG, name, spec)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_changes_a_preset_and_what_is_typed_changes_both(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(
        f"preset: accm-losses\n{TAU}: 5:40\n{FORM}: [hinge, softmax]\nmodel.head.fusion: off\n"
        "optim.lr: log:0.001:0.01\n"
    )
    space = {d.name: d for d in read_space(CONFIG, str(path), {TAU: "7:8", "optim.lr": "off"}, 11)}
    assert (space[TAU].low, space[TAU].high, space[TAU].log) == (7.0, 8.0, False)
    assert space[FORM].values == ("hinge", "softmax")
    assert "model.head.fusion" not in space
    assert "optim.lr" not in space
    assert INTER in space, "the rest of the preset stays"
    for text, said in (("- a\n", "must map"), ("preset: acm-losses\n", "did you mean accm-losses")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=said):
            read_space(CONFIG, str(path), {}, 11)
    with pytest.raises(ConfigError, match="did you mean recipe"):
        read_space(CONFIG, "recipes", {}, 11)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("num_classes", [2, 19])
def test_every_preset_reads_and_has_no_refused_corner_with_every_recipe(preset, recipe, num_classes):
    config = RECIPES[recipe]()
    space = read_space(config, preset, {}, num_classes)
    seen = []
    check_corners(config, space, seen.append)
    assert len(seen) >= 2 * len(space) - 1
    assert set(defaults_of(config, space)) == {dimension.name for dimension in space}


def test_corners_that_settings_refuse_each_other_in_pairs_are_refused_before_a_trial():
    config = with_settings(CONFIG, {"optim.min_lr": 0.0})
    lr = read_dimension(config, "optim.lr", "log:0.0001:0.01")
    least = read_dimension(config, "optim.min_lr", "0:0.001")
    check_corners(config, (lr,), lambda made: None)
    check_corners(config, (least,), lambda made: None)
    with pytest.raises(
        ConfigError, match=r"optim.lr 0.0001, optim.min_lr 0.001.*narrow --search.optim.lr or"
    ):
        check_corners(config, (lr, least), lambda made: None)


def test_what_only_the_model_refuses_is_told_by_its_corner():
    delta = read_dimension(CONFIG, "model.head.delta", "-0.5:0.5")

    def check(config):
        if config.model.head.delta < -0.1:
            raise ConfigError("out of reach")

    with pytest.raises(ConfigError, match=r"model.head.delta -0.5\): out of reach; narrow"):
        check_corners(CONFIG, (delta,), check)


def test_a_trial_is_given_no_setting_that_its_others_leave_idle():
    """The oracle is what the command line refuses when it is typed."""
    space = read_space(CONFIG, "accm-losses", {}, 11)
    left_out = set()
    for number in range(60):
        drawn = draw_random(space, 0, number, 0)
        active = active_settings(CONFIG, drawn)
        made = with_settings(CONFIG, active)
        refuse_idle_settings(made, active)
        left_out |= drawn.keys() - active.keys()
        for name in drawn.keys() - active.keys():
            with pytest.raises(ConfigError):
                refuse_idle_settings(with_settings(CONFIG, drawn), [name])
    assert {"model.head.delta", "model.head.p", "model.head.q", "model.head.alpha", FORM} <= left_out
    assert TAU not in left_out
    assert left_out <= frozenset().union(*(rule.settings for rule in RULES))


def test_a_trial_is_named_by_what_varies():
    defaults = {TAU: 15.0, FORM: "hinge"}
    assert trial_name(defaults, defaults) == "defaults"
    assert trial_name({TAU: 12.3456, FORM: "hinge"}, defaults) == "tau 12.3"
    assert trial_name({FORM: "softmax"}, defaults, 3) == "inter_form softmax · seed 3"
    flags = {"model.head.learn_tau": True, "model.head.projection": False}
    assert trial_name(flags, {}) == "learn_tau true · projection false", "as they are typed"


def test_the_space_of_a_config_is_untouched_by_what_is_drawn_from_it():
    space = read_space(CONFIG, "recipe", {}, 19)
    names = set(flatten(CONFIG))
    assert {dimension.name for dimension in space} <= names
    assert all(dataclasses.is_dataclass(dimension) for dimension in space)
