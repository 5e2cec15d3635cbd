"""Points are whole settings of the space, and what cannot be tried as it is typed is refused by its place."""

from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.idle_settings import refuse_idle_settings
from pipeline.recipes import laptop
from pipeline.search.points import read_points
from pipeline.search.space import defaults_of, read_space
from pipeline.settings import with_settings

CONFIG = laptop()
SPACE = read_space(CONFIG, "accm-losses", {}, 11)
DEFAULTS = defaults_of(CONFIG, SPACE)
TAU, FUSION, ALPHA = "model.head.tau", "model.head.fusion", "model.head.alpha"


def read(path: Path, text: str):
    path.write_text(text)
    return read_points(CONFIG, path, SPACE)


def test_a_point_has_the_defaults_of_all_settings_that_it_leaves_open(tmp_path):
    """Else pictures and TPE would take them for idle."""
    (point,) = read(tmp_path / "p.yaml", f"- {{{TAU}: 9}}\n")
    idle = (ALPHA, "model.head.q")  # of fusion gate and of the cosine's form alone
    active = {name: value for name, value in DEFAULTS.items() if name not in idle}
    assert point == active | {TAU: 9.0}
    made = with_settings(CONFIG, point)
    refuse_idle_settings(made, point)
    assert made == with_settings(CONFIG, {TAU: 9})
    (gate,) = read(tmp_path / "p.yaml", f"- {{{FUSION}: gate}}\n")
    assert gate[ALPHA] == DEFAULTS[ALPHA], "alpha counts with a gate"


def test_words_of_a_point_are_no_truth_values_to_yaml(tmp_path):
    (point,) = read(tmp_path / "p.yaml", f"- {{{FUSION}: off, model.head.learn_tau: yes, {TAU}: 1e1}}\n")
    assert (point[FUSION], point["model.head.learn_tau"], point[TAU]) == ("off", True, 10.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must be a list"),
        (f"{TAU}: 9\n", "must be a list"),
        ("- 9\n", "must be a list"),
        ("-\n", "must be a list"),
        (f"- {{{TAU}: [9, 10]}}\n", "must be a list"),
        (f"- {{{TAU}: 9, {TAU}: 10}}\n", "is there twice"),
        (
            f"- {{{TAU}: 9}}\n- {{model.head.taus: 9}}\n",
            "settings 2: model.head.taus is not searched (did you",
        ),
        (f"- {{{TAU}: -1}}\n", "settings 1: model.head.tau must be above 0"),
        (f"- {{{TAU}:}}\n", "settings 1: --model.head.tau takes float, got ''"),
        (f"- {{{ALPHA}: 0.5}}\n", "settings 1: alpha scales the gate alone: leave out --model.head.alpha"),
        (f"- {{{TAU}: 9}}\n- {{{TAU}: 9.0}}\n", "settings 2 are those of number 1; leave them out"),
        (f"- {{{TAU}: {DEFAULTS[TAU]}}}\n", "settings 1 are the defaults, which are tried anyway; leave"),
        ("- {}\n", "settings 1 are the defaults"),
    ],
)
def test_what_cannot_be_tried_is_refused_in_one_line_by_file_and_place(tmp_path, text, said):
    path = tmp_path / "points.yaml"
    with pytest.raises(ConfigError) as refused:
        read(path, text)
    assert said in str(refused.value)
    assert f"--points {path}" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"--points .*nothing.yaml: no such file"):
        read_points(CONFIG, tmp_path / "nothing.yaml", SPACE)
