"""`fit()` with loader workers, killed and stopped all along: the bits of the run that reads by itself."""

import psutil
import pytest
import torch

from pipeline.recipes import recipe
from pipeline.settings import with_settings
from pipeline.train import checkpoint, metrics
from pipeline.train.loop import fit

SETTINGS = {
    "data.input_height": 48, "data.input_width": 64, "data.crop_height": 32, "data.crop_width": 32,
    "model.backbone.base_width": 8, "model.head.dim": 16, "train.batch_global": 4, "train.accumulation": 2,
    "train.steps": 12, "train.evaluate_every": 12, "train.metrics_every": 1, "train.pictures": 0,
    "train.precision": "float32", "launch.use_gpu": "no", "data.prefetch": 1, "data.worker_timeout_s": 0.5,
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    """Bits depend on how many threads share a sum."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def weights(run_dir) -> dict[str, torch.Tensor]:
    return checkpoint.read_tensors(checkpoint.newest_checkpoint(run_dir), checkpoint.WEIGHTS)


@pytest.mark.parametrize("colour", ["loader", "device"])
def test_workers_that_are_killed_and_stopped_change_no_bit(shards, tmp_path, surroundings, colour):
    settings = with_settings(recipe("laptop"), SETTINGS | {"data.colour": colour})
    alone, others = surroundings(), set(psutil.Process().children())
    fit(settings, shards, tmp_path / "alone", alone)

    class Harassed(surroundings):
        """Ends a loader worker after every third step, and stops one once."""

        def metrics(self, step, values):
            super().metrics(step, values)
            workers = [child for child in psutil.Process().children() if child not in others]
            if step % 3 == 0:
                workers[step % 2].kill()
            if step == 7:
                workers[0].suspend()

    harassed = Harassed()
    fit(with_settings(settings, {"data.loader_workers": 2}), shards, tmp_path / "harassed", harassed)
    assert set(psutil.Process().children()) == others
    expected, found = weights(tmp_path / "alone"), weights(tmp_path / "harassed")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    losses = [[context.points[metrics.LOSS, step] for step in range(1, 13)] for context in (alone, harassed)]
    assert losses[0] == losses[1]
    assert sum(harassed.points[metrics.WORKER_RESTARTS, step] for step in range(1, 13)) >= 3
