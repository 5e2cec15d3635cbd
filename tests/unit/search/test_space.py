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
        (
            TAU,
            "5,,9",
            "--search.model.head.tau 5,,9: --model.head.tau takes float, got ''; type values a,b,c",
        ),
        ("tracking.registered_model", "a,b", "changes no number"),
        ("data.loader_workers", "0,2", "changes no number"),
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


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("preset: [recipe]\n", "did you mean recipe"),
        (f"preset:\n{TAU}: 5:40\n", "presets are accm-losses, recipe"),
        (f"{TAU}: 5:40\n{TAU}: 6:7\n", f"{TAU} is there twice"),
        (f"{TAU}: 40:5\n", "lower end below"),
        ("model.head.taus: off\n", "the space has no such setting"),
        ("preset: accm-losses\nmodel.head.taus: off\n", "did you mean model.head.tau"),
        ("{}\n", "nothing is left to search"),
        ("", "must map names"),
        (f"{TAU}: {{low: 5}}\n", "must map names"),
        (f"{TAU}:\n", "takes float, got ''"),
    ],
)
def test_what_a_file_gets_wrong_is_told_with_the_file(tmp_path, text, said):
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        read_space(CONFIG, str(path), {}, 11)
    assert said in str(refused.value)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_is_not_in_the_space_cannot_be_taken_out_of_it():
    """Else a misspelt name would be searched on."""
    for name, said in (("model.head.tauu", "did you mean model.head.tau"), ("optim.lr", "no such setting")):
        with pytest.raises(ConfigError, match=said):
            read_space(CONFIG, "accm-losses", {name: "off"}, 11)
    assert TAU not in {d.name for d in read_space(CONFIG, "accm-losses", {TAU: " off "}, 11)}


def test_a_setting_that_no_trial_would_read_is_refused_where_it_was_typed_and_left_out_of_a_preset():
    plain = with_settings(CONFIG, {"model.head.kind": "plain"})
    assert [d.name for d in read_space(plain, "accm-losses", {}, 11)] == ["model.head.lambda_coarse"]
    with pytest.raises(ConfigError, match=r"no trial would read it, as .*; take --model.head.kind ccs, or"):
        read_space(plain, "accm-losses", {TAU: "5:40"}, 11)
    off = {f"model.head.{name}": "off" for name in ("fusion", "lambda_coarse")}
    with pytest.raises(ConfigError, match=r"--search.model.head.alpha 0:1: no trial.*model.head.fusion gate"):
        read_space(CONFIG, "accm-losses", {**off, "model.head.alpha": "0:1"}, 11)
    with_gate = {"model.head.fusion": "off,gate", "model.head.alpha": "0:1"}
    assert "model.head.alpha" in {d.name for d in read_space(CONFIG, "recipe", with_gate, 11)}
    # Two other settings must have other values than the config's for delta to count.
    none = with_settings(CONFIG, {INTER: 0.0, FORM: "softmax"})
    assert "model.head.delta" in {d.name for d in read_space(none, "accm-losses", {}, 11)}


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


@pytest.mark.parametrize("num_classes", [2, 3, 11, 19, 150])
def test_no_delta_of_the_preset_is_below_what_centers_can_reach(num_classes):
    (delta,) = (d for d in read_space(CONFIG, "accm-losses", {}, num_classes) if d.name == "model.head.delta")
    assert -1 / (num_classes - 1) <= delta.low < 0


def test_a_recipe_preset_has_no_refused_corner_where_the_config_is_at_an_end():
    for typed in ({"optim.min_lr": 0.002}, {"optim.weight_decay": 0.0}, {"optim.min_lr": CONFIG.optim.lr}):
        config = with_settings(CONFIG, typed)
        check_corners(config, read_space(config, "recipe", {}, 11), lambda made: None)


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


@pytest.mark.parametrize(
    ("name", "spec", "corner"),
    [
        ("model.backbone.output_stride", "8:32", "model.backbone.output_stride 9"),
        ("model.backbone.base_width", "8:64", "model.backbone.base_width 9"),
    ],
)
def test_a_range_of_which_few_numbers_are_taken_is_refused(name, spec, corner):
    """Its ends are taken; of what lies between, the search would draw nearly all in vain."""
    with pytest.raises(ConfigError, match=corner):
        check_corners(CONFIG, (read_dimension(CONFIG, name, spec),), lambda made: None)


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
    assert trial_name({FORM: "softmax"}, defaults, 3) == "seed 3 · inter_form softmax", (
        "names are cut at their end"
    )
    flags = {"model.head.learn_tau": True, "model.head.projection": False}
    assert trial_name(flags, {}) == "learn_tau true · projection false", "as they are typed"


def test_the_space_of_a_config_is_untouched_by_what_is_drawn_from_it():
    space = read_space(CONFIG, "recipe", {}, 19)
    names = set(flatten(CONFIG))
    assert {dimension.name for dimension in space} <= names
    assert all(dataclasses.is_dataclass(dimension) for dimension in space)
