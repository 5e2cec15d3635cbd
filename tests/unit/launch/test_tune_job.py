"""A search whose trials are over tells its best, and what is trained after it, without Ray."""

import json
from pathlib import Path

import pytest

from pipeline.errors import PipelineError
from pipeline.launch import ray_cluster, tune_job
from pipeline.launch.job import run_job
from pipeline.launch.run_folder import recorded_config, write_json
from pipeline.launch.tune_checks import check_search, write_plan
from pipeline.launch.tune_folder import OUTCOME, Ended, TuneFolder
from pipeline.launch.tune_request import read_tune_request
from pipeline.recipes import laptop
from pipeline.search.agenda import next_order
from pipeline.search.records import Point, Trial
from pipeline.tracking.journal import Journal

SMALL = ["--data.input_height", "32", "--data.input_width", "64", "--model.head.dim", "16"]
SMALL += ["--data.crop_height", "32", "--data.crop_width", "64", "--model.backbone.base_width", "8"]
TAU = "model.head.tau"
TOLD = {"parent_run_id": "p", "tracking_uri": "sqlite:///x", "report": "report.html"}


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    monkeypatch.setattr(ray_cluster, "connected", lambda *_: pytest.fail("Ray was started"))


@pytest.fixture
def words(shards, tmp_path):
    words = ["--shards", str(shards), "--runs", str(tmp_path / "runs"), "--name", "s", *SMALL]
    words += ["--trials", "3", "--trial-steps", "90", "--train.evaluate_every", "10", "--algorithm", "random"]
    space = tmp_path / "space.yaml"
    space.write_text(f"{TAU}: 5:40\nmodel.head.learn_tau: [true, false]\n")
    return [*words, "--space", str(space)]


def finish(words, *scores):
    """The folder of a search whose trials ended with these scores, None for one that failed."""
    request = read_tune_request(words)
    checked = check_search(request)
    folder = TuneFolder(request.search_dir)
    folder.path.mkdir(parents=True)
    write_plan(folder, checked)
    trials: list[Trial] = []
    for score in scores:
        order = next_order(checked.plan, checked.config, trials)
        folder.write_order(order)
        points = ()
        if score is not None:
            points = (Point(90, score),)
            journal = Journal(folder.trial_dir(order.number), "a")
            journal.metrics(90, {"val/miou": score})
            journal.close()
        ended = Ended("failed", 0, "weights became NaN") if score is None else Ended("done", 90)
        folder.write_ended(order.number, ended)
        trials.append(Trial(order.number, order.name, order.settings, ended.state, points))
    write_json(folder.path / OUTCOME, TOLD | {"trials": len(trials)})
    return folder, trials


def test_a_finished_search_tells_its_best_against_the_defaults(words, capsys):
    _, trials = finish(words, 0.5, 0.4, 0.7)
    result = dict.fromkeys(tune_job.FIELDS)
    tune_job.tune(result, words)
    assert result["best"] == trials[2].settings
    assert (result["best_trial"], result["best_miou"], result["defaults_miou"]) == (2, 0.7, 0.5)
    assert (result["trials"], result["stopped"], result["failed"]) == (3, 0, 0)
    assert {name: result[name] for name in TOLD} == TOLD
    assert result["trained_run"] is None


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ((0.5, 0.4, 0.7), "best mIoU 0.700, +0.200 over the defaults: trial 002"),
        ((0.8, 0.4, 0.7), "best mIoU 0.800: trial 000, defaults, which nothing beat  report"),
        ((None, 0.4, 0.7), "best mIoU 0.700: trial 002"),
    ],
)
def test_the_last_line_says_what_was_gained_and_nothing_of_a_gain_over_itself(words, caplog, scores, said):
    finish(words, *scores)
    with caplog.at_level("INFO", logger="pipeline"):
        tune_job.tune(dict.fromkeys(tune_job.FIELDS), words)
    assert any(said in record.getMessage() for record in caplog.records), caplog.text


def test_a_search_of_which_every_trial_failed_ends_with_one_line_and_trains_nothing(
    words, capsys, monkeypatch
):
    folder, _ = finish(words, None, None, None)
    monkeypatch.setattr(tune_job, "train", lambda *_: pytest.fail("trained"))
    rc = run_job("tune", lambda result: tune_job.tune(result, [*words, "--then-train"]), tune_job.FIELDS)
    said = capsys.readouterr()
    result = json.loads(said.out.splitlines()[-1].removeprefix("RESULT "))
    assert rc == result["exit_code"] == 1
    assert (
        said.err
        == f"tune: no trial of s was trained to its end; their logs are in {folder.trials_dir}/*/log\n"
    )
    assert (result["trials"], result["failed"], result["best"], result["report"]) == (
        3,
        3,
        None,
        "report.html",
    )


@pytest.mark.parametrize("scores", [(0.5, 0.4, 0.7), (0.8, 0.4, 0.7)])
def test_then_train_trains_the_best_with_all_data_and_all_steps_and_registers_it(words, monkeypatch, scores):
    """Be it the defaults: then what is registered has seen the drives that were held out, too."""
    folder, trials = finish(words, *scores)
    asked: list[list[str]] = []

    def train(result, typed):
        asked.append(typed)
        result |= {"miou": 0.9, "model_uri": "models:/mine/1"}

    monkeypatch.setattr(tune_job, "train", train)
    result = dict.fromkeys(tune_job.FIELDS)
    tune_job.tune(result, [*words, "--then-train", "--register", "mine"])
    config = recorded_config(Path(asked[0][asked[0].index("--config") + 1]))
    best = trials[scores.index(max(scores))]
    assert (config.model.head.tau, config.model.head.learn_tau) == (
        best.settings[TAU], best.settings["model.head.learn_tau"],
    )  # fmt: skip
    assert (config.data.held_out, config.train.steps) == ("", laptop().train.steps)
    assert config.tracking.registered_model == "mine"
    assert asked[0][asked[0].index("--name") + 1] == result["trained_run"] == "s-best"
    assert asked[0][asked[0].index("--runs") + 1] == str(folder.path.parent)
    assert (result["trained_miou"], result["model_uri"]) == (0.9, "models:/mine/1")


def test_a_training_of_the_best_that_fails_tells_what_it_was(words, monkeypatch):
    finish(words, 0.5, 0.4, 0.7)

    def train(result, typed):
        result["miou"] = 0.3
        raise PipelineError("disk")

    monkeypatch.setattr(tune_job, "train", train)
    result = dict.fromkeys(tune_job.FIELDS)
    with pytest.raises(PipelineError, match="disk"):
        tune_job.tune(result, [*words, "--then-train"])
    assert (result["trained_run"], result["trained_miou"], result["best_trial"]) == ("s-best", 0.3, 2)
