"""The saver: training goes on, what is written is what was copied, and a disk that refuses is heard of."""

import errno
import threading

import pytest
import torch

from pipeline.config import BackboneConfig, HeadConfig, ModelConfig
from pipeline.data.labels import CITYSCAPES
from pipeline.errors import WorldStateError
from pipeline.train import checkpoint, checkpoint_folder
from pipeline.train import saver as saver_module
from pipeline.train.checkpoint import Score
from pipeline.train.checkpoint_folder import CheckpointFolder, Content
from pipeline.train.metrics import CHECKPOINT_STALL_S
from pipeline.train.model_card import MODEL_CARD, ModelCard
from pipeline.train.saver import Saver
from pipeline.world import World

SMALL = ModelConfig(BackboneConfig(depth=18, base_width=8), HeadConfig(dim=8))


@pytest.fixture
def gated(surroundings):
    """Surroundings in which the writer waits at each point that is closed."""

    class Gated(surroundings):
        def __init__(self, run_dir):
            super().__init__()
            self.run_dir, self.passed, self.open = run_dir, [], threading.Event()
            self.open.set()

        def mark(self, point, step):
            self.passed.append((point, step))
            if point == "write":
                assert self.open.wait(30)

        def event(self, name, step, **fields):
            assert checkpoint.verify(self.run_dir / "checkpoints" / fields["checkpoint"]) is None
            super().event(name, step, **fields)

    return Gated


def save(saver: Saver, step: int, weights: torch.Tensor, score: Score | None = None) -> float:
    card = ModelCard(SMALL, CITYSCAPES, 32, 48, "abc", step, None)
    tensors = {checkpoint.WEIGHTS: {"w": weights}, checkpoint.OPTIMIZER: {"w//m": weights}}
    return saver.save(tensors, Content({}, card, {"progress": {"step": step}}, score))


def weights_of(folder) -> list[float]:
    return checkpoint.read_tensors(folder, checkpoint.WEIGHTS)["w"].tolist()


def test_training_goes_on_while_a_checkpoint_is_written_and_changes_nothing_of_it(tmp_path, gated):
    context = gated(tmp_path)
    saver, weights = Saver(tmp_path, context, 2, None), torch.ones(4)
    context.open.clear()
    save(saver, 1, weights)
    weights.fill_(7.0)  # the next step
    assert checkpoint.list_committed(tmp_path) == []
    assert saver.holds(1)
    assert not saver.failed
    context.open.set()
    assert saver.finish() is None
    (folder,) = checkpoint.list_committed(tmp_path)
    assert weights_of(folder) == [1.0] * 4
    saver.close()


def test_a_save_waits_for_the_one_before_and_its_stall_is_recorded(tmp_path, gated):
    context = gated(tmp_path)
    saver = Saver(tmp_path, context, 2, None)
    context.open.clear()
    first_s = save(saver, 1, torch.ones(4))
    opening = threading.Timer(0.3, context.open.set)
    opening.start()
    second_s = save(saver, 2, torch.ones(4))
    opening.join()
    assert context.passed.index(("after_commit", 1)) < context.passed.index(("snapshot", 2))
    assert second_s >= 0.2
    stalls = {step: value for (key, step), value in context.points.items() if key == CHECKPOINT_STALL_S}
    assert stalls == {1: first_s, 2: second_s}
    saver.close()


def test_a_commit_is_told_of_once_it_is_whole_and_nothing_is_removed_before(tmp_path, gated):
    context = gated(tmp_path)
    saver = Saver(tmp_path, context, 1, None)
    for step in (1, 2):
        save(saver, step, torch.ones(4))
    assert saver.finish() is None
    assert context.events == [("commit", 1), ("commit", 2)]  # `event` verifies each
    assert context.passed == [
        (point, step)
        for step, extra in ((1, []), (2, ["prune"]))
        for point in ("snapshot", "write", "before_commit", "after_commit", *extra, "saved")
    ]
    saver.close()


def test_a_score_follows_its_weights_and_is_there_at_once_where_it_is_known(tmp_path, gated):
    saver = Saver(tmp_path, gated(tmp_path), 2, None)
    save(saver, 1, torch.ones(4))
    saver.note_score(Score(0.5, 0.9))
    save(saver, 2, torch.ones(4), Score(0.6, 0.8))
    assert saver.finish() is None
    assert [checkpoint.read_score(folder) for folder in checkpoint.list_committed(tmp_path)] == [
        Score(0.6, 0.8),
        Score(0.5, 0.9),
    ]
    saver.close()


@pytest.mark.parametrize("ending", [False, True])
def test_ranks_are_told_again_and_again_that_rank_0_waits_for_a_slow_disk(
    tmp_path, gated, monkeypatch, ending
):
    """A collective that they all wait in for as long as the disk takes would meet its time-out."""
    context = gated(tmp_path)
    saver, told = Saver(tmp_path, context, 2, None), []

    def tell(done, world):
        told.append(done)
        if len(told) == 4:
            context.open.set()
        return done

    monkeypatch.setattr(saver_module, "broadcast_object", tell)
    monkeypatch.setattr(saver_module, "WAIT_S", 0.05)
    save(saver, 1, torch.ones(4))
    assert told == [True]
    assert saver.finish() is None
    told.clear()
    context.open.clear()
    save(saver, 2, torch.ones(4))
    told.clear()
    if ending:
        assert saver.finish() is None
    else:
        save(saver, 3, torch.ones(4))
    assert told[:4] == [False] * 4
    assert told[-1]
    saver.close()


def test_wait_for_a_write_after_an_error_of_training_is_no_part_of_a_step(tmp_path, gated):
    """Rank 0 would be taken for hung in that step, and killed before it said what the error was."""
    entered = []

    class Told(gated):
        def phase(self, name):
            entered.append(name)
            return super().phase(name)

    context = Told(tmp_path)
    saver = Saver(tmp_path, context, 2, None)
    context.open.clear()
    save(saver, 1, torch.ones(4))
    threading.Timer(0.2, lambda: (entered.append("written"), context.open.set())).start()
    saver.close()
    assert entered == ["finish", "written"]


FILES = [checkpoint.WEIGHTS, checkpoint.OPTIMIZER, MODEL_CARD, checkpoint.STATE, checkpoint.COMMIT]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("name", FILES)
def test_a_disk_that_refuses_any_file_is_one_clear_error_and_leaves_what_was_committed(
    tmp_path, gated, monkeypatch, name, number
):
    context = gated(tmp_path)
    saver = Saver(tmp_path, context, 1, None)
    save(saver, 1, torch.ones(4))
    assert saver.finish() is None
    refuse(monkeypatch, name, number)
    save(saver, 2, torch.ones(4))
    problem = saver.finish()
    assert isinstance(problem, WorldStateError)
    assert "step_00000002" in str(problem)
    assert "make room" in str(problem)
    assert saver.failed
    save(saver, 3, torch.ones(4))  # nothing is tried again
    saver.note_score(Score(0.5, 0.9))
    assert saver.finish() is problem
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000001-a"]
    assert context.events == [("commit", 1)]
    saver.close()


def refuse(monkeypatch, name, number):
    """Make the disk refuse that file, after the first half of it."""
    put, replace = CheckpointFolder.put, checkpoint_folder._replace

    def refusing_put(self, file, pieces):
        if file == name:
            content = b"".join(pieces)
            (self.path / file).write_bytes(content[: len(content) // 2])
            raise OSError(number, "the disk refuses")
        put(self, file, pieces)

    def refusing_replace(path, content):
        if path.name == name:
            path.with_name(f"{name}.tmp").write_bytes(content[: len(content) // 2])
            raise OSError(number, "the disk refuses")
        replace(path, content)

    monkeypatch.setattr(CheckpointFolder, "put", refusing_put)
    monkeypatch.setattr(checkpoint_folder, "_replace", refusing_replace)


def test_a_score_that_cannot_be_written_is_an_error_and_costs_no_weights(tmp_path, gated, monkeypatch):
    saver = Saver(tmp_path, gated(tmp_path), 1, None)
    refuse(monkeypatch, checkpoint.SCORE, errno.ENOSPC)
    save(saver, 1, torch.ones(4))
    saver.note_score(Score(0.5, 0.9))
    assert isinstance(saver.finish(), WorldStateError)
    newest = checkpoint.newest_checkpoint(tmp_path)
    assert newest is not None
    assert checkpoint.read_score(newest) is None
    saver.close()


def test_a_bug_of_the_writer_is_raised_where_it_is_waited_for(tmp_path, gated, monkeypatch):
    saver = Saver(tmp_path, gated(tmp_path), 1, None)
    monkeypatch.setattr(CheckpointFolder, "commit", lambda self, attempt: 1 // 0)
    save(saver, 1, torch.ones(4))
    with pytest.raises(ZeroDivisionError):
        saver.finish()
    saver.close()


def test_an_error_of_training_waits_for_the_write_and_tells_of_one_that_failed(
    tmp_path, gated, monkeypatch, caplog
):
    context = gated(tmp_path)
    saver = Saver(tmp_path, context, 2, None)
    save(saver, 1, torch.ones(4))
    saver.close()
    assert len(checkpoint.list_committed(tmp_path)) == 1
    saver = Saver(tmp_path, context, 2, None)
    refuse(monkeypatch, checkpoint.COMMIT, errno.ENOSPC)
    save(saver, 2, torch.ones(4))
    saver.close()
    assert "the disk refuses" in caplog.text


def test_ranks_beside_the_first_write_nothing(tmp_path, gated, monkeypatch):
    monkeypatch.setattr(saver_module, "broadcast_object", lambda mine, world: True)  # rank 0 has written
    context = gated(tmp_path)
    context.world = World(1, 2)
    saver = Saver(tmp_path, context, 2, None)
    assert save(saver, 1, torch.ones(4)) == 0.0
    saver.note_score(Score(0.5, 0.9))
    assert saver.finish() is None
    assert saver.holds(1)
    assert list(tmp_path.iterdir()) == []
    saver.close()
