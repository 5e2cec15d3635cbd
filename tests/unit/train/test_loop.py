"""`fit()` on one rank: bit-equal after a stop, honest about damaged samples, refusing other runs' state."""

import json
import shutil

import pytest
import torch

from pipeline.data.dataset import ShardDataset
from pipeline.data.quarantine import num_quarantined
from pipeline.errors import CheckpointError, ShardError
from pipeline.recipes import recipe
from pipeline.settings import with_settings
from pipeline.train import checkpoint, loop, metrics
from pipeline.train.evaluate import evaluate
from pipeline.train.loop import fit
from pipeline.train.step import to_device

SETTINGS = {
    "data.input_height": 48, "data.input_width": 64, "data.crop_height": 32, "data.crop_width": 32,
    "model.backbone.base_width": 8, "model.head.dim": 16, "train.batch_global": 4, "train.steps": 6,
    "train.evaluate_every": 3, "train.checkpoint_every": 100, "train.precision": "float32",
    "train.metrics_every": 1, "train.ema_decay": 0.9, "launch.use_gpu": "no",
}  # fmt: skip


def config(**settings):
    return with_settings(recipe("laptop"), SETTINGS | {k.replace("__", "."): v for k, v in settings.items()})


@pytest.fixture(autouse=True)
def one_thread():
    """Bits depend on how many threads share a sum; and tiny pictures need no second one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def newest_tensors(run_dir):
    folder = checkpoint.newest_checkpoint(run_dir)
    names = (checkpoint.WEIGHTS, checkpoint.AVERAGED, checkpoint.OPTIMIZER)
    return {f"{name}:{k}": v for name in names for k, v in checkpoint.read_tensors(folder, name).items()}


@pytest.mark.parametrize("metrics_every", [1, 3])
def test_a_stopped_and_resumed_run_ends_bit_for_bit_as_the_undisturbed_one(
    metrics_every, shards, tmp_path, surroundings
):
    whole, settings = surroundings(), config(train__metrics_every=metrics_every)
    fit(settings, shards, tmp_path / "whole", whole)
    first, second = surroundings("a", stop_step=1), surroundings("b")
    stopped = fit(settings, shards, tmp_path / "parts", first)
    assert (stopped.status, stopped.step) == ("preempted", 2)
    ended = fit(settings, shards, tmp_path / "parts", second)
    assert (ended.status, ended.step) == ("ok", 6)

    assert_same_bits(tmp_path / "whole", tmp_path / "parts")
    assert untimed(first.points | second.points) == untimed(whole.points)


@pytest.mark.parametrize(("stop_step", "step"), [(2, 3), (3, 3), (5, 6), (6, 6)])
def test_a_stop_waits_for_no_evaluation_and_the_next_attempt_begins_with_it(
    stop_step, step, shards, tmp_path, surroundings
):
    """A picture of Cityscapes takes seconds on a CPU; who stops a job often kills it half a minute later."""
    whole, first, second = surroundings(), surroundings("a", stop_step=stop_step), surroundings("b")
    fit(config(), shards, tmp_path / "whole", whole)
    stopped = fit(config(), shards, tmp_path / "parts", first)
    assert (stopped.status, stopped.step) == ("preempted", step)
    assert first.events[-2:] == [("commit", step), ("stop", step)], "no step is lost"
    assert (metrics.VAL_MIOU, step) not in first.points
    ended = fit(config(), shards, tmp_path / "parts", second)
    assert (ended.status, ended.step) == ("ok", 6)
    assert second.events[0] == ("start", step)
    assert_same_bits(tmp_path / "whole", tmp_path / "parts")
    assert untimed(first.points | second.points) == untimed(whole.points)
    assert not untimed(first.points).keys() & untimed(second.points).keys(), "no point twice"
    best = [checkpoint.best_checkpoint(tmp_path / name) for name in ("whole", "parts")]
    assert len({checkpoint.step_of(folder) for folder in best}) == 1


def test_an_extended_run_ends_bit_for_bit_as_the_repeat_of_its_recorded_config(
    shards, tmp_path, surroundings
):
    first, second, repeat = surroundings("a"), surroundings("b"), surroundings("c")
    extended = config(train__steps=9, train__extended_at="5")
    fit(config(train__steps=5), shards, tmp_path / "run", first)
    ended = fit(extended, shards, tmp_path / "run", second)
    assert (ended.status, ended.step) == ("ok", 9)
    fit(extended, shards, tmp_path / "repeat", repeat)
    assert_same_bits(tmp_path / "repeat", tmp_path / "run")
    assert untimed(first.points | second.points) == untimed(repeat.points)
    assert not first.points.keys() & second.points.keys(), "no point twice"


def test_held_out_drives_are_scored_and_never_trained_on_and_a_resumed_run_keeps_to_that(
    shards, tmp_path, surroundings, monkeypatch
):
    trained, scored = set(), []
    monkeypatch.setattr(
        loop, "to_device", lambda batch, device: trained.update(batch.keys) or to_device(batch, device)
    )
    monkeypatch.setattr(
        loop, "evaluate", lambda model, data, *more, **named: (
            scored.append(data.keys()) or evaluate(model, data, *more, **named)
        )
    )  # fmt: skip
    settings, whole = config(data__held_out="tiny_000002,tiny_000007"), surroundings()
    fit(settings, shards, tmp_path / "whole", whole)
    drives = [f"tiny_{index:06d}_000019" for index in range(13)]
    held_out = [drives[2], drives[7]]
    assert trained == set(drives) - set(held_out)  # 24 samples: over two epochs of 11
    assert scored == [held_out, held_out]
    fit(settings, shards, tmp_path / "parts", surroundings("a", stop_step=1))
    fit(settings, shards, tmp_path / "parts", surroundings("b"))
    assert trained == set(drives) - set(held_out)
    assert_same_bits(tmp_path / "whole", tmp_path / "parts")
    with pytest.raises(CheckpointError, match="made with held_out = 'tiny_000002,tiny_000007'"):
        fit(config(train__steps=8), shards, tmp_path / "parts", surroundings("c"))


def assert_same_bits(whole, parts):
    expected, found = newest_tensors(whole), newest_tensors(parts)
    assert expected.keys() == found.keys()
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []


def untimed(points):
    """The points of a history that are no measure of time."""
    timed = {metrics.SAMPLES_PER_S, metrics.DATA_WAIT_SHARE, metrics.CHECKPOINT_STALL_S}
    timed |= {metrics.STORE_S_PER_SAMPLE, metrics.DECODE_S_PER_SAMPLE}
    return {k: v for k, v in points.items() if k[0] not in timed}


def test_what_a_person_will_look_at_is_recorded(shards, tmp_path, surroundings):
    context = surroundings()
    result = fit(config(train__pictures=2), shards, tmp_path, context)
    assert {step for key, step in context.points if key == metrics.LOSS} == {1, 2, 3, 4, 5, 6}
    assert {step for key, step in context.points if key == metrics.VAL_MIOU} == {3, 6}
    assert context.points[metrics.VAL_MIOU, result.best_step] == result.miou
    assert context.pictures.keys() == {(f"val_pred/scene{i}", s) for i in (0, 1) for s in (3, 6)}
    assert context.pictures["val_pred/scene0", 3].shape == (48, 3 * 64, 3)
    assert context.events[0] == ("start", 0)
    assert ("commit", 6) in context.events


def test_a_checkpoint_of_another_order_or_model_is_refused(shards, tmp_path, surroundings):
    fit(config(train__steps=1), shards, tmp_path, surroundings())
    with pytest.raises(CheckpointError, match=r"seed"):
        fit(config(train__steps=2, train__seed=1), shards, tmp_path, surroundings("b"))
    with pytest.raises(CheckpointError, match="another model"):
        fit(config(train__steps=2, model__head__dim=24), shards, tmp_path, surroundings("c"))


@pytest.mark.parametrize("kind", ["plain", "ccs"])
def test_training_learns(shards, tmp_path, kind, surroundings):
    settings = config(
        train__steps=40, train__evaluate_every=40, optim__lr=5e-3, data__augment__photometric=False,
        model__head__kind=kind,
    )  # fmt: skip
    context = surroundings()
    fit(settings, shards, tmp_path, context)
    curve = [context.points[metrics.LOSS_CE, step] for step in range(1, 41)]
    assert sum(curve[-5:]) < 0.8 * sum(curve[:5])


def test_a_trace_is_written_on_request(shards, tmp_path, surroundings):
    settings = config(train__profile_steps=2, train__steps=13, train__evaluate_every=13)
    fit(settings, shards, tmp_path, surroundings())
    (trace,) = (tmp_path / "trace").glob("*.json")
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert "aten::conv2d" in names
    assert {name for name in names if name and name.startswith("ProfilerStep")} == {
        "ProfilerStep#10",
        "ProfilerStep#11",
    }


@pytest.mark.parametrize("workers", [0, 1])
def test_where_colours_change_changes_no_bit_of_the_weights(shards, tmp_path, surroundings, workers):
    tensors = []
    for where in ("loader", "device"):
        settings = {"data__colour": where, "data__loader_workers": workers, "train__steps": 3}
        fit(config(**settings), shards, tmp_path / where, surroundings())
        tensors.append(newest_tensors(tmp_path / where))
    assert [key for key in tensors[0] if not torch.equal(tensors[0][key], tensors[1][key])] == []


def damaged(shards, tmp_path, split, number):
    """A copy of the shards in which one bit of each of `number` images differs."""
    root = shutil.copytree(shards, tmp_path / "damaged")
    dataset = ShardDataset.open(str(root), split)
    for index in range(number):
        ref = dataset.ref(*dataset.locate(index))
        with (root / ref.shard.name).open("r+b") as file:
            file.seek(ref.entry.image.offset + ref.entry.image.bytes // 2)
            byte = file.read(1)[0]
            file.seek(-1, 1)
            file.write(bytes([byte ^ 1]))
    return str(root), ref


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_over_a_flipped_bit_goes_on_and_names_the_sample_once(
    shards, tmp_path, surroundings, caplog, workers
):
    root, bad = damaged(shards, tmp_path, "train", 1)
    with caplog.at_level("WARNING"):
        context = surroundings()
        settings = {"train__steps": 8, "data__loader_workers": workers}  # 2.5 epochs
        result = fit(config(**settings), root, tmp_path / "run", context)
    assert (result.status, result.step) == ("ok", 8)
    assert num_quarantined(tmp_path / "run") == context.points[metrics.QUARANTINED, 8] == 1
    (line,) = (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()
    noted = json.loads(line)
    assert (noted["key"], noted["shard"]) == (bad.entry.key, bad.shard.name)
    assert f"offset {bad.entry.image.offset}" in noted["error"]
    assert [r.getMessage().startswith("[event] quarantined") for r in caplog.records] == [True]


@pytest.mark.parametrize(("limit", "number"), [(0, 1), (1, 2)])
def test_more_damaged_samples_than_allowed_end_the_run(shards, tmp_path, surroundings, limit, number):
    root, _ = damaged(shards, tmp_path, "train", number)
    with pytest.raises(ShardError, match=rf"{number} damaged samples, {limit} are gone on without; .*jsonl"):
        fit(config(data__quarantine_max=limit), root, tmp_path / "run", surroundings())
    assert num_quarantined(tmp_path / "run") == number


def test_evaluation_fails_with_the_damaged_sample(shards, tmp_path, surroundings):
    root, bad = damaged(shards, tmp_path, "val", 1)
    place = rf"{bad.shard.name}: image of '{bad.entry.key}' at offset {bad.entry.image.offset}"
    with pytest.raises(ShardError, match=place):
        fit(config(), root, tmp_path / "run", surroundings())


@pytest.mark.parametrize("steps", [3, 6])
def test_no_step_is_lost_to_an_evaluation_that_fails(shards, tmp_path, surroundings, steps):
    whole = surroundings()
    fit(config(train__steps=steps), shards, tmp_path / "whole", whole)
    root, _ = damaged(shards, tmp_path, "val", 1)
    first, second = surroundings("a"), surroundings("b")
    with pytest.raises(ShardError):
        fit(config(train__steps=steps), root, tmp_path / "parts", first)
    ended = fit(config(train__steps=steps), shards, tmp_path / "parts", second)
    assert ("start", 3) in second.events
    assert (ended.status, ended.step) == ("ok", steps)
    assert ended.miou is not None
    assert_same_bits(tmp_path / "whole", tmp_path / "parts")
    assert untimed(first.points | second.points) == untimed(whole.points)
