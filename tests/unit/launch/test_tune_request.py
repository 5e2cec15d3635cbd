"""What is typed for a search is refused in one line before anything is started, or means what it says."""

import json

import pytest

from pipeline.data.dataset import ShardDataset
from pipeline.errors import ConfigError, ShardError, WorldStateError
from pipeline.launch import ray_cluster, tune_checks, tune_job
from pipeline.launch.tune_checks import check_search, refuse_other_search, trials_at_once, write_plan
from pipeline.launch.tune_folder import TuneFolder
from pipeline.launch.tune_request import at_full_budget, plan_search, read_tune_request
from pipeline.launch.workers import Workers
from pipeline.recipes import laptop
from pipeline.search.records import Dimension
from pipeline.settings import flatten

SMALL = ["--data.input_height", "32", "--data.input_width", "64", "--model.head.dim", "16"]
SMALL += ["--data.crop_height", "32", "--data.crop_width", "64", "--model.backbone.base_width", "8"]


@pytest.fixture
def words(shards, tmp_path):
    return ["--shards", str(shards), "--runs", str(tmp_path / "runs"), "--name", "s", *SMALL]


def planned(words):
    request = read_tune_request(words)
    return request, *plan_search(request, ShardDataset.open(request.shards, "train"))


def test_trials_leave_out_drives_that_they_are_scored_on_and_the_best_is_trained_with_all(words):
    request, plan, config = planned([*words, "--trial-steps", "90", "--train.evaluate_every", "10"])
    assert plan.held_out
    assert config.data.held_out_drives == plan.held_out
    assert (config.train.steps, plan.budget_steps) == (90, 90)
    assert config.tracking.registered_model == "", "trials are not registered"
    best = at_full_budget(request, {"model.head.tau": 7.0})
    assert (best.data.held_out, best.train.steps) == ("", laptop().train.steps)
    assert (best.model.head.tau, best.tracking.registered_model) == (7.0, "mini-ccs")
    request, plan, _ = planned([*words, "--data.held_out", "train_000001"])
    assert plan.held_out == ("train_000001",)
    assert at_full_budget(request, {}).data.held_out == ""


def test_search_flags_change_the_space_and_settings_change_what_it_is_searched_around(words):
    typed = ["--search.model.head.tau", "log:6:12", "--search.optim.lr=log:0.001:0.01", "--optim.lr", "0.002"]
    _, plan, config = planned([*words, *typed])
    space = {dimension.name: dimension for dimension in plan.space}
    assert space["model.head.tau"] == Dimension("model.head.tau", (), 6.0, 12.0, log=True)
    assert plan.defaults["optim.lr"] == config.optim.lr == 0.002


def test_points_are_tried_on_top_of_the_defaults_and_are_models_before_a_trial_starts(words, tmp_path):
    path = tmp_path / "points.yaml"
    path.write_text("- {model.head.tau: 9, model.head.fusion: gate}\n- model.head.p: 1\n")
    _, plan, _ = planned([*words, "--points", str(path)])
    assert [(point["model.head.tau"], point["model.head.p"]) for point in plan.points] == [
        (9.0, 2),
        (15.0, 1),
    ]
    path.write_text("- {model.head.p: 1}\n- {model.head.delta: -0.9}\n")
    with pytest.raises(ConfigError, match=r"--points, settings 2: model.head.delta -0.9.*") as refused:
        check_search(read_tune_request([*words, "--points", str(path)]))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["--workers", "1:2"], "all trials of a search have as many ranks"),
        (["--runs", "s3://bucket/p"], "kept in a folder"),
        (["--space", "acm-losses"], "did you mean accm-losses"),
        (["--search.model.head.taus", "1:2"], "did you mean model.head.tau"),
        (["--search.train.steps", "1:2"], "trials of a search have the same one"),
        (["--train.evaluate_every", "500"], "or --scheduler none"),
        (["--hold-out", "0.7"], "at most 0.5"),
        (["--trials", "0"], "at least 1"),
        (["--concurent", "2"], "did you mean --concurrent"),
        (["--concurrent", "0"], "--concurrent must be at least 1, got 0"),
        (["--hold-out", "nan"], "--hold-out nan: "),
        (
            ["--hold-out", "0.5", "--data.held_out", "train_000001"],
            "leave out --hold-out, as --data.held_out",
        ),
        (["--name", ""], "--name '' must be 1 to 100"),
        (["--name", "n" * 98, "--then-train"], f"--name {'n' * 98} is too long for --then-train"),
        (["--register", "mine"], "leave out --register, or type --then-train"),
        (["--finalists", "2"], "leave out --finalists, or type --repeat"),
        (["--reduction", "4", "--scheduler", "median"], "leave out --reduction, or type --scheduler asha"),
        (["--search.train.extended_at", "3,4"], "trials of a search have the same one"),
        (["--search.data.train_split", "train,val"], "trials of a search have the same one"),
        (["--model.head.kind", "plain", "--model.head.tau", "3"], "leave out --model.head.tau"),
    ],
)
def test_what_cannot_be_searched_is_refused_with_what_to_type(words, typed, said):
    kept = [w for at, w in enumerate(words) if typed[0] not in (w, words[at - 1])]
    with pytest.raises(ConfigError) as refused:
        planned([*kept, *typed])
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_misspelt_preset_is_told_inside_a_ray_job_too(words, monkeypatch):
    """There a path has to be absolute, which a preset is not."""
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ConfigError, match=r"no preset .did you mean accm-losses"):
        planned([*words, "--space", "acm-losses"])
    with pytest.raises(ConfigError, match="is relative, and a Ray job runs in a temporary copy"):
        planned([*words, "--space", "recipe.yaml"])


def test_more_trials_than_a_space_has_settings_are_refused(words, tmp_path):
    """Trials have one seed, so that the same settings once more would give the same score."""
    two = tmp_path / "space.yaml"
    two.write_text("model.head.p: [1, 2]\nmodel.head.fusion: [off, gate]\n")
    typed = [*words, "--space", str(two), "--trials"]
    _, plan, _ = planned([*typed, "5"])
    assert plan.num_trials == 5, "four, and the defaults, whose fusion is none of them"
    with pytest.raises(ConfigError, match=r"--trials 6: the space has 4 settings.*type --trials 5 or less"):
        planned([*typed, "6"])
    points = tmp_path / "points.yaml"
    points.write_text("- {model.head.fusion: mlp}\n- {model.head.p: 1, model.head.fusion: gate}\n")
    _, plan, _ = planned([*typed, "6", "--points", str(points)])
    assert plan.num_trials == 6
    with pytest.raises(ConfigError, match="type --trials 6 or less"):
        planned([*typed, "7", "--points", str(points)])


def test_what_then_train_needs_is_looked_for_before_the_first_trial(words):
    typed = [*words, "--data.val_split", "test"]
    check_search(read_tune_request(typed))
    with pytest.raises(ShardError, match="test"):
        check_search(read_tune_request([*typed, "--then-train"]))


def test_room_is_looked_for_for_the_repeats_too(words, monkeypatch):
    asked = []
    monkeypatch.setattr(tune_checks, "check_space", lambda folder, needed: asked.append(needed))
    for typed in ([], ["--repeat", "2", "--finalists", "3"]):
        check_search(read_tune_request([*words, "--trials", "10", *typed]))
    least, most = asked
    kept = (most - least) / 8  # three and the defaults, twice
    assert least > 10 * kept > 0


def test_a_space_with_a_corner_that_no_model_has_is_refused_before_ray_is_started(words, monkeypatch):
    monkeypatch.setattr(ray_cluster, "connected", lambda *_: pytest.fail("Ray was started"))
    with pytest.raises(ConfigError, match=r"model.head.delta -0.9\).*narrow --search.model.head.delta"):
        tune_job.tune({}, [*words, "--search.model.head.delta", "-0.9:0.5"])
    with pytest.raises(ConfigError, match=r"train.batch_global 3\): .*does not divide by 2 workers"):
        tune_job.tune({}, [*words, "--workers", "2", "--search.train.batch_global", "3,4"])


def test_another_search_under_the_same_name_is_refused_by_what_differs(words):
    words = [*words, "--space", "recipe"]
    checked = check_search(read_tune_request(words))
    folder = TuneFolder(read_tune_request(words).search_dir)
    folder.path.mkdir(parents=True)
    write_plan(folder, checked)
    refuse_other_search(folder, checked)
    more = check_search(read_tune_request([*words, "--trials", "40"]))
    refuse_other_search(folder, more)
    for typed, said in (
        (["--search.model.head.tau", "6:12"], "space in model.head.tau"),
        (["--algorithm", "sobol"], "algorithm tpe, now sobol"),
        (["--optim.lr", "0.001"], "--optim.lr 0.003, now 0.001"),
    ):
        other = check_search(read_tune_request([*words, *typed]))
        with pytest.raises(WorldStateError, match=said):
            refuse_other_search(folder, other)
    (folder.path / "search.json").unlink()
    with pytest.raises(WorldStateError, match="is the name of a run"):
        refuse_other_search(folder, checked)


@pytest.mark.parametrize("name", ["search.json", "config.json"])
@pytest.mark.parametrize(
    "text", ["", '{"plan": {"space"', "[]", "null", '{"plan": null, "config": 1, "config_hash": ""}']
)
def test_a_torn_note_of_what_a_name_stands_for_is_told_and_nothing_is_overwritten(words, name, text):
    words = [*words, "--space", "recipe"]
    checked = check_search(read_tune_request(words))
    folder = TuneFolder(read_tune_request(words).search_dir)
    folder.path.mkdir(parents=True)
    write_plan(folder, checked)
    (folder.path / name).write_text(text)
    with pytest.raises(WorldStateError, match=f"{name} cannot be read"):
        refuse_other_search(folder, checked)
    assert (folder.path / name).read_text() == text


def test_the_config_of_a_search_is_that_of_its_trials_but_for_what_is_searched(words):
    checked = check_search(read_tune_request(words))
    recorded = json.loads(json.dumps(checked.identity()))
    assert recorded["config"]["data"]["held_out"] == flatten(checked.config)["data.held_out"]


@pytest.mark.parametrize(
    ("typed", "workers", "room", "fits"),
    [
        ([], 1, 2, 2),
        ([], 2, 2, 1),
        ([], 3, 8, 2),
        (["--concurrent", "1"], 1, 2, 1),
        (["--concurrent", "2"], 1, 2, 2),
        (["--trials", "2"], 1, 9, 2),
    ],
)
def test_as_many_trials_run_at_once_as_there_is_room_for_whole_ones(words, typed, workers, room, fits):
    request = read_tune_request([*words, *typed])
    assert trials_at_once(request, Workers(workers, 1, use_gpu=False), room) == fits


def test_more_trials_at_once_than_fit_are_refused_with_the_number_that_does(words):
    request = read_tune_request([*words, "--concurrent", "3"])
    with pytest.raises(ConfigError, match=r"each takes 2 x 4 CPUs and GPUs; --concurrent 2 fits"):
        trials_at_once(request, Workers(2, 4, use_gpu=True), 5)
    with pytest.raises(ConfigError, match="no trial fits"):
        trials_at_once(request, Workers(2, 4, use_gpu=True), 1)
