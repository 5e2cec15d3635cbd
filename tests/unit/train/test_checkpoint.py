"""A checkpoint exists once COMMIT says so, and is exactly what was written."""

import errno
import json
import logging
import os
import random
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from pipeline.config import BackboneConfig, HeadConfig, ModelConfig, OptimConfig
from pipeline.data.labels import CITYSCAPES
from pipeline.errors import CheckpointError, WorldStateError
from pipeline.model.segmenter import build_segmenter
from pipeline.train import checkpoint, retention
from pipeline.train.checkpoint import Score
from pipeline.train.checkpoint_folder import attach_score
from pipeline.train.host_copy import TensorFile
from pipeline.train.model_card import MODEL_CARD, ModelCard
from pipeline.train.optim import build_optimizer, optimizer_tensors, restore_optimizer
from pipeline.train.signed_json import read_signed, signed
from pipeline.world import World
from tests.checkpoints import write_checkpoint

SMALL = ModelConfig(BackboneConfig(depth=18, base_width=8), HeadConfig(dim=8))
FILES = [checkpoint.WEIGHTS, checkpoint.OPTIMIZER, MODEL_CARD, checkpoint.STATE]


def card(step: int, miou: float | None = None) -> ModelCard:
    return ModelCard(SMALL, CITYSCAPES, 32, 48, "abc", step, miou)


def write(run_dir, step: int, miou: float | None = None, **extra):
    folder = checkpoint.checkpoint_folder(run_dir, step, "t1")
    tensors = {
        checkpoint.WEIGHTS: {"w": torch.full((3,), float(step))},
        checkpoint.OPTIMIZER: {"w//momentum": torch.full((3,), -float(step))},
    }
    write_checkpoint(folder, tensors | extra, card(step, miou), {"progress": {"step": step}})
    return folder


def prune(run_dir, keep_last: int) -> None:
    for folder in retention.superfluous(run_dir, keep_last):
        retention.remove(folder)


def test_what_is_read_is_what_was_written(tmp_path):
    folder = write(tmp_path, 7, 0.25)
    found = checkpoint.read_checkpoint(folder)
    assert (found.card, found.state) == (card(7, 0.25), {"progress": {"step": 7}})
    torch.testing.assert_close(
        checkpoint.read_tensors(folder, checkpoint.WEIGHTS)["w"], torch.full((3,), 7.0)
    )


def test_tensors_of_every_type_and_layout_are_read_by_safetensors_as_they_were(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"{dtype}": (torch.rand(3, 5, generator=generator) * 99).to(dtype)
        for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
                      torch.int16, torch.int8, torch.uint8, torch.bool)
    }  # fmt: skip
    tensors |= {
        "channels last": torch.rand(2, 3, 4, 5, generator=generator).to(memory_format=torch.channels_last),
        "a slice": torch.rand(7, 7, generator=generator)[1:, ::2],
        "a count": torch.tensor(41),
        "nothing": torch.empty(0, 4),
        "NaN and infinity": torch.tensor([float("nan"), float("inf"), -0.0]),
    }
    file = TensorFile(tensors, pinned=False)
    for _ in range(2):  # the memory is used again
        file.fill({name: torch.zeros_like(tensor) for name, tensor in tensors.items()})
        file.fill(tensors)
    (tmp_path / "x.safetensors").write_bytes(b"".join(file.pieces()))
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, equal_nan=True)
    with safe_open(tmp_path / "x.safetensors", "pt") as opened:
        assert set(opened.keys()) == tensors.keys()


def test_averaged_weights_come_first_for_prediction(tmp_path):
    folder = write(tmp_path, 7, **{checkpoint.AVERAGED: {"w": torch.zeros(3)}})
    assert checkpoint.read_model(folder)[1]["w"].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("name", [*FILES, checkpoint.COMMIT])
def test_a_checkpoint_with_any_file_cut_anywhere_is_walked_past_by_name(tmp_path, name, caplog):
    older, newer = write(tmp_path, 5), write(tmp_path, 6)
    path, whole = newer / name, (newer / name).read_bytes()
    for length in [0, 1, *random.Random(0).sample(range(2, len(whole)), 3), len(whole) - 1]:
        if length == len(whole) - 1 and name == checkpoint.COMMIT:
            continue  # its last line break says nothing
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=name):
            checkpoint.read_checkpoint(newer)
        caplog.clear()
        assert checkpoint.newest_checkpoint(tmp_path) == older
        (line,) = [record.getMessage() for record in caplog.records]
        assert str(path) in line
        assert "going back" in line
    path.unlink()
    assert checkpoint.newest_checkpoint(tmp_path) == older
    path.write_bytes(whole)
    assert checkpoint.newest_checkpoint(tmp_path) == newer


def test_storage_that_refuses_every_checkpoint_begins_no_training_at_step_0(tmp_path, monkeypatch):
    """A server that is away, or keys of another user, say nothing of what is in them."""
    folders = [write(tmp_path, step) for step in (5, 6)]
    refused, sha256 = set(folders), checkpoint.file_sha256

    def read(path):
        if path.parent in refused:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return sha256(path)

    monkeypatch.setattr(checkpoint, "file_sha256", read)
    with pytest.raises(
        WorldStateError, match=r"no checkpoint of .* can be read .*Stale file handle.*; type"
    ) as r:
        retention.newest_for_all(tmp_path, World())
    assert "\n" not in str(r.value)
    assert sorted((tmp_path / "checkpoints").iterdir()) == folders, "none is set aside"
    refused.remove(folders[0])
    assert retention.newest_for_all(tmp_path, World()) == folders[0]
    assert [path.name for path in (tmp_path / "checkpoints").glob("damaged-*")] == [
        f"damaged-{folders[1].name}"
    ]


def test_a_checkpoint_whose_removal_is_cut_off_is_none(tmp_path, monkeypatch):
    """Or it would be read as a damaged one, or count among the last few."""
    folder = write(tmp_path, 6, 0.5)

    def killed(path):
        assert checkpoint.list_committed(tmp_path) == []
        raise KeyboardInterrupt

    monkeypatch.setattr(retention.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        retention.remove(folder)
    assert checkpoint.newest_checkpoint(tmp_path) is None


def test_an_unfinished_checkpoint_that_cannot_be_removed_holds_nobody_up(tmp_path, monkeypatch, caplog):
    whole, unfinished = write(tmp_path, 5), write(tmp_path, 6)
    (unfinished / checkpoint.COMMIT).unlink()
    with monkeypatch.context() as patched:

        def busy(path, *_, **__):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))

        patched.setattr(retention.shutil, "rmtree", busy)
        for _ in range(2):
            assert retention.newest_for_all(tmp_path, World()) == whole
    assert "is left for the next attempt to remove: Directory not empty" in caplog.text
    assert retention.newest_for_all(tmp_path, World()) == whole
    assert list((tmp_path / "checkpoints").iterdir()) == [whole]


def test_storage_that_lets_nothing_be_tidied_is_one_clear_error(tmp_path, monkeypatch):
    (write(tmp_path, 6) / checkpoint.COMMIT).unlink()

    def refuse(path, target):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(type(tmp_path), "rename", refuse)
    with pytest.raises(WorldStateError, match=r"cannot tidy .*checkpoints: Read-only file system \(.*step_"):
        retention.newest_for_all(tmp_path, World())


@pytest.mark.parametrize("name", [*FILES, checkpoint.COMMIT, checkpoint.SCORE])
def test_no_flipped_bit_anywhere_is_taken_for_what_was_written(tmp_path, name):
    folder = write(tmp_path, 6, 0.25)
    path, whole = folder / name, (folder / name).read_bytes()
    draw = random.Random(0)
    places = draw.sample(range(len(whole)), min(60, len(whole)))
    for place in {0, 7, 8, len(whole) - 1, *places}:  # length, header and data of safetensors among them
        data = bytearray(whole)
        data[place] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        if name == checkpoint.SCORE:  # the weights are whole: they are evaluated again
            assert checkpoint.read_score(folder) in (None, Score(0.25, 0.0))
            continue
        with pytest.raises(CheckpointError, match=name) as raised:
            checkpoint.read_checkpoint(folder)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"null", b"[]", b"{}", b"7", b'"x"', b"\xff\xfe\x00", b"[" * 100_000, b'{"files": {}}',
        signed({}), signed({"format": checkpoint.FORMAT}), signed({"format": checkpoint.FORMAT, "files": []}),
        signed({"format": checkpoint.FORMAT, "files": {}}), signed({"format": "ccs-checkpoint/9"}),
        signed({"format": checkpoint.FORMAT, "files": {"model.safetensors": None}}),
    ],
)  # fmt: skip
def test_a_commit_that_is_none_is_one_clear_error(tmp_path, content, caplog):
    older, newer = write(tmp_path, 5), write(tmp_path, 6)
    (newer / checkpoint.COMMIT).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"COMMIT\.json") as raised:
        checkpoint.read_checkpoint(newer)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 600
    assert checkpoint.newest_checkpoint(tmp_path) == older


@pytest.mark.parametrize("name", ["../step_00000005-t1/model.safetensors", "/etc/hostname", "..", "a/b", ""])
def test_a_commit_that_names_a_file_elsewhere_is_refused_unread(tmp_path, name):
    write(tmp_path, 5)
    newer = write(tmp_path, 6)
    commit = read_signed(newer / checkpoint.COMMIT)
    commit["files"][name] = {"bytes": 1, "sha256": "0" * 64}
    (newer / checkpoint.COMMIT).write_bytes(signed(commit))
    with pytest.raises(CheckpointError, match="its files are"):
        checkpoint.read_checkpoint(newer)


def test_damaged_checkpoints_are_set_aside_so_that_new_ones_are_kept(tmp_path):
    kept = write(tmp_path, 5)
    for step in (7, 8):
        (write(tmp_path, step) / checkpoint.WEIGHTS).unlink()
    retention.set_aside_newer(tmp_path, checkpoint.newest_checkpoint(tmp_path))
    written = write(tmp_path, 6)
    prune(tmp_path, keep_last=2)
    assert checkpoint.list_committed(tmp_path) == [written, kept]
    assert len(list((tmp_path / "checkpoints").glob("damaged-*"))) == 2


def test_a_folder_without_commit_does_not_exist(tmp_path):
    older = write(tmp_path, 5)
    newer = write(tmp_path, 6)
    (newer / checkpoint.COMMIT).unlink()
    with pytest.raises(CheckpointError, match="never finished"):
        checkpoint.read_model(newer)
    assert checkpoint.newest_checkpoint(tmp_path) == older
    retention.remove_uncommitted(tmp_path)
    assert list((tmp_path / "checkpoints").iterdir()) == [older]


def test_what_a_clearing_that_was_killed_has_left_is_cleared_and_what_was_committed_in_that_moment_counts(
    tmp_path,
):
    older, left, committed = (write(tmp_path, step) for step in (5, 6, 7))
    (left / checkpoint.COMMIT).unlink()
    for folder in (left, committed):
        folder.rename(folder.with_name(f"unfinished-{folder.name}"))
    assert checkpoint.list_committed(tmp_path) == [older]
    retention.remove_uncommitted(tmp_path)
    assert checkpoint.list_committed(tmp_path) == [committed, older]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_best_and_last_are_kept(tmp_path):
    for step, miou in [(1, 0.1), (2, 0.4), (3, 0.2), (4, None), (5, 0.4)]:
        write(tmp_path, step, miou)
        prune(tmp_path, keep_last=2)
    kept = sorted(checkpoint.step_of(folder) for folder in checkpoint.list_committed(tmp_path))
    assert kept == [2, 4, 5]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        f"step_0000000{n}-t1" for n in (2, 4, 5)
    ]
    best = checkpoint.best_checkpoint(tmp_path)
    assert best is not None
    assert checkpoint.step_of(best) == 2  # the tie at step 5 keeps the earlier one


def test_a_score_that_is_attached_later_makes_the_best_and_is_in_its_card(tmp_path):
    for step in (1, 2, 3):
        write(tmp_path, step, 0.3 if step == 1 else None)
    attach_score(tmp_path / "checkpoints" / "step_00000002-t1", Score(0.6, 0.9))
    prune(tmp_path, keep_last=1)
    best = checkpoint.best_checkpoint(tmp_path)
    assert best == tmp_path / "checkpoints" / "step_00000002-t1"
    assert checkpoint.read_model(best)[0] == card(2, 0.6)
    assert checkpoint.read_checkpoint(best).score == Score(0.6, 0.9)
    assert [checkpoint.step_of(folder) for folder in checkpoint.list_committed(tmp_path)] == [3, 2]


def test_a_score_of_other_weights_does_not_count(tmp_path, caplog):
    first, second = write(tmp_path, 1, 0.9), write(tmp_path, 2)
    shutil.copy(first / checkpoint.SCORE, second / checkpoint.SCORE)
    with caplog.at_level(logging.WARNING):
        assert checkpoint.read_checkpoint(second).card.miou is None
    assert "is of other weights" in caplog.text


def test_a_best_checkpoint_that_is_damaged_gives_way_to_the_next_best(tmp_path):
    for step, miou in ((1, 0.3), (2, 0.6), (3, 0.5)):
        write(tmp_path, step, miou)
    (tmp_path / "checkpoints" / "step_00000002-t1" / checkpoint.WEIGHTS).write_bytes(b"")
    best = checkpoint.best_checkpoint(tmp_path)
    assert best is not None
    assert checkpoint.step_of(best) == 3


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_restored_optimizer_continues_bit_for_bit(tmp_path, name):
    def step(model, optimizer):
        for index, parameter in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(index)
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()

    torch.manual_seed(0)
    model = build_segmenter(SMALL, 5)
    optimizer = build_optimizer(OptimConfig(name=name), model)
    step(model, optimizer)
    folder = tmp_path / "checkpoints" / "step_00000001-a"
    tensors = {
        checkpoint.WEIGHTS: model.state_dict(),
        checkpoint.OPTIMIZER: optimizer_tensors(model, optimizer),
    }
    write_checkpoint(folder, tensors, card(1), {})
    step(model, optimizer)

    other = build_segmenter(SMALL, 5)
    other.load_state_dict(checkpoint.read_tensors(folder, checkpoint.WEIGHTS))
    restored = build_optimizer(OptimConfig(name=name), other)
    restore_optimizer(other, restored, checkpoint.read_tensors(folder, checkpoint.OPTIMIZER))
    step(other, restored)
    for mine, theirs in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_model_cards_of_another_format_are_refused(tmp_path):
    folder = tmp_path / "exported"
    folder.mkdir()
    (folder / MODEL_CARD).write_text(json.dumps(card(1).to_dict() | {"format": "ccs-model/9"}))
    with pytest.raises(CheckpointError, match="ccs-model/9"):
        checkpoint.read_model(folder)
