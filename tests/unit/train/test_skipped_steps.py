"""`fit()` over steps that are not finite: left out, noted with their samples, and not too many."""

import json

import pytest
import torch

from pipeline.errors import NonFiniteLossError
from pipeline.recipes import recipe
from pipeline.settings import with_settings
from pipeline.train import checkpoint, compile, loop, metrics, step
from pipeline.train.loop import fit
from tests.poison import leave_out, plant

SETTINGS = {
    "data.input_height": 48, "data.input_width": 64, "data.crop_height": 32, "data.crop_width": 32,
    "model.backbone.depth": 10, "model.backbone.base_width": 8, "model.head.dim": 8, "train.batch_global": 4,
    "train.steps": 5, "train.evaluate_every": 5, "train.checkpoint_every": 100, "train.pictures": 0,
    "train.precision": "float32", "train.metrics_every": 1, "train.ema_decay": 0.9, "launch.use_gpu": "no",
}  # fmt: skip
OF_TIME = ("_per_s", "_s_per_sample", "wait_share", "stall_s")


def config(**settings):
    return with_settings(recipe("laptop"), SETTINGS | {k.replace("__", "."): v for k, v in settings.items()})


@pytest.fixture(autouse=True)
def one_thread():
    """Bits depend on how many threads share a sum; and tiny pictures need no second one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def noting(surroundings):
    """Surroundings that keep the fields of what was skipped."""

    class Noting(surroundings):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.skipped, self.heard_in_step = {}, {}

        def event(self, name, step, **fields):
            super().event(name, step)
            if name == "skipped":
                assert step not in self.skipped, "each is noted once"
                self.skipped[step], self.heard_in_step[step] = fields, self.steps_begun

    return Noting


@pytest.fixture
def keys_by_step(monkeypatch):
    """The keys of every step's batch (1-based), as the loop took them: an oracle of its own."""
    found = {}
    assemble, to_device = loop.assemble, loop.to_device

    def assemble_and_listen(*arguments):
        run = assemble(*arguments)

        def listen(batch, device):
            found.setdefault(run.state.step + 1, []).extend(batch.keys)
            return to_device(batch, device)

        monkeypatch.setattr(loop, "to_device", listen)
        return run

    monkeypatch.setattr(loop, "assemble", assemble_and_listen)
    return found


def tensors(run_dir):
    folder = checkpoint.newest_checkpoint(run_dir)
    names = (checkpoint.WEIGHTS, checkpoint.AVERAGED, checkpoint.OPTIMIZER)
    return {f"{name}:{k}": v for name in names for k, v in checkpoint.read_tensors(folder, name).items()}


def state(run_dir):
    return checkpoint.read_checkpoint(checkpoint.newest_checkpoint(run_dir)).state["progress"]


def assert_same_bits(one, other):
    expected, found = tensors(one), tensors(other)
    assert expected.keys() == found.keys()
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []


def untimed(points, *, without_step=None):
    """The points of a history that are no measure of time, nor the count of skipped steps."""
    return {
        (key, step): value
        for (key, step), value in points.items()
        if not key.endswith(OF_TIME) and key != metrics.SKIPPED and step != without_step
    }


CASES = {
    "sgd": ("activation", 2, {}),
    "sgd-first-step": ("activation", 0, {}),
    "adamw-clipped-accumulated": (
        "activation", 2, {"optim__name": "adamw", "optim__clip_norm": 1.0, "train__accumulation": 2},
    ),
    "adamw-bfloat16-gradient": ("gradient", 3, {"optim__name": "adamw", "train__precision": "bfloat16"}),
    "sgd-bfloat16-loss": ("loss", 1, {"train__precision": "bfloat16", "optim__clip_norm": 0.5}),
    "sgd-last-step-statistics": ("statistics", 4, {}),
    "compiled-loss": ("loss", 2, {"train__compile": True}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_run_over_a_step_that_is_not_finite_ends_as_one_that_leaves_it_out(
    shards, tmp_path, monkeypatch, noting, caplog, case
):
    kind, bad, settings = CASES[case]
    # As compiled as can be without a C++ compiler's half a minute.
    monkeypatch.setattr(compile, "HOW", {"fullgraph": True, "dynamic": False, "backend": "aot_eager"})
    reference, context = noting(), noting()
    with monkeypatch.context() as patch:
        leave_out(patch, {bad})
        fit(config(**settings), shards, tmp_path / "reference", reference)
    with monkeypatch.context() as patch:
        plant(patch, kind, {bad})
        result = fit(config(**settings), shards, tmp_path / "run", context)
    assert (result.status, result.step) == ("ok", 5)
    assert_same_bits(tmp_path / "reference", tmp_path / "run")
    expected, found = (untimed(c.points, without_step=bad + 1) for c in (reference, context))
    assert found == expected
    assert list(context.skipped) == [bad + 1]
    assert reference.skipped == {}
    assert not [line for line in caplog.messages if "not compiled" in line]
    assert state(tmp_path / "run")["position"] == 5 * 4  # its batch is consumed, and not repeated


def test_what_was_skipped_is_noted_with_loss_norm_and_keys_of_the_global_batch(
    shards, tmp_path, monkeypatch, noting, keys_by_step, caplog
):
    context = noting()
    plant(monkeypatch, "activation", {1})
    with caplog.at_level("WARNING"):
        fit(config(train__accumulation=2), shards, tmp_path, context)
    (fields,) = context.skipped.values()
    assert fields == {"loss": "nan", "gradient_norm": "nan", "samples": keys_by_step[2]}
    assert json.loads(json.dumps(fields, allow_nan=False)) == fields
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        "[event] skipped step 2 with loss nan, gradient norm nan and samples "
        f"{', '.join(keys_by_step[2][:3])}, …; 1 of at most 10"
    )
    assert [context.points[metrics.SKIPPED, step] for step in range(1, 6)] == [0, 1, 1, 1, 1]
    assert (metrics.LOSS, 2) not in context.points  # nothing to draw
    assert (metrics.LOSS, 3) in context.points


def test_the_host_hears_of_it_a_step_late_or_at_once_where_a_point_of_the_curves_is_due(
    shards, tmp_path, monkeypatch, noting
):
    late, at_once = noting(), noting()
    plant(monkeypatch, "activation", {1, 4})
    fit(config(train__metrics_every=100), shards, tmp_path / "late", late)
    fit(config(train__metrics_every=2), shards, tmp_path / "at once", at_once)
    assert late.heard_in_step == {2: 3, 5: 5}  # the last is saved, so it counts itself
    assert at_once.heard_in_step == {2: 2, 5: 5}


@pytest.mark.parametrize("limit", [0, 1])
def test_one_more_than_allowed_ends_the_run_with_the_batch_and_what_to_type(
    shards, tmp_path, monkeypatch, noting, keys_by_step, limit
):
    bad = [1, 3][limit]
    with monkeypatch.context() as patch:
        plant(patch, "activation", {1, 3})
        with pytest.raises(NonFiniteLossError) as raised:
            fit(config(train__max_skipped_steps=limit), shards, tmp_path, noting())
    line = str(raised.value)
    assert "\n" not in line
    assert f"not finite: {limit + 1}, allowed are {limit}; the last is step {bad + 1} with loss nan" in line
    assert f"samples {', '.join(keys_by_step[bad + 1][:3])}, …" in line
    assert "raise --train.max_skipped_steps" in line
    assert "another --name with a smaller --optim.lr than " in line
    saved = state(tmp_path)
    assert (saved["step"], saved["skipped_steps"]) == (bad + 1, limit + 1)
    assert all(value.isfinite().all() for value in tensors(tmp_path).values())


def test_a_run_that_skipped_too_many_goes_on_from_there_once_more_are_allowed(
    shards, tmp_path, monkeypatch, noting
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    first, second = noting("a"), noting("b")
    with monkeypatch.context() as patch:
        plant(patch, "activation", {0, 2})
        fit(config(), shards, whole, noting())
        with pytest.raises(NonFiniteLossError):
            fit(config(train__max_skipped_steps=1), shards, parts, first)
    with pytest.raises(NonFiniteLossError, match=r"not finite: 2, allowed are 1\. .*as of step 3,"):
        fit(config(train__max_skipped_steps=1), shards, parts, noting("again"))
    fit(config(train__max_skipped_steps=2), shards, parts, second)
    assert ("start", 3) in second.events
    assert_same_bits(whole, parts)
    assert state(whole) == state(parts)


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_the_count_of_a_stopped_and_resumed_run_is_that_of_the_undisturbed_one(
    shards, tmp_path, monkeypatch, noting, stop
):
    plant(monkeypatch, "activation", {1, 2, 4})
    whole, first, second = noting(), noting("a", stop), noting("b")
    fit(config(), shards, tmp_path / "whole", whole)
    assert fit(config(), shards, tmp_path / "parts", first).status == "preempted"
    assert fit(config(), shards, tmp_path / "parts", second).status == "ok"
    assert state(tmp_path / "whole")["skipped_steps"] == 3
    assert state(tmp_path / "whole") == state(tmp_path / "parts")
    assert first.skipped | second.skipped == whole.skipped
    assert untimed(first.points | second.points) == untimed(whole.points)
    counts = [{k: v for k, v in c.points.items() if k[0] == metrics.SKIPPED} for c in (whole, first, second)]
    assert counts[1] | counts[2] == counts[0]
    assert_same_bits(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("limit", [0, 10])
@pytest.mark.parametrize("metrics_every", [1, 100])
def test_weights_that_are_not_finite_are_neither_scored_nor_saved(
    shards, tmp_path, monkeypatch, noting, metrics_every, limit
):
    rate = step.learning_rate
    monkeypatch.setattr(
        step, "learning_rate", lambda optim, index, total: 1e38 if index == 2 else rate(optim, index, total)
    )
    context = noting()
    settings = config(
        optim__name="sgd", train__checkpoint_every=2, train__metrics_every=metrics_every,
        train__max_skipped_steps=limit, train__evaluate_every=4,
    )  # fmt: skip
    with pytest.raises(NonFiniteLossError, match=r"weights became .*by step [345] .*--optim\.lr"):
        fit(settings, shards, tmp_path, context)
    assert not [key for key, _ in context.points if key == metrics.VAL_MIOU]
    assert [checkpoint.step_of(folder) for folder in checkpoint.list_committed(tmp_path)] == [2]
    assert all(value.isfinite().all() for value in tensors(tmp_path).values())
