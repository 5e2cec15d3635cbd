"""A real disk that is full or read-only, under a checkpoint: a clear line on all ranks, and it resumes."""

import errno
import hashlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from pipeline.errors import WorldStateError
from pipeline.launch.fence import begin_attempt
from pipeline.launch.run_context import JournaledContext
from pipeline.recipes import recipe
from pipeline.settings import with_settings
from pipeline.tracking.journal import Event, Metrics, read_journal
from pipeline.train import checkpoint
from pipeline.train.loop import fit
from pipeline.world import World

SETTINGS = {
    "data.input_height": 48, "data.input_width": 64, "data.crop_height": 32, "data.crop_width": 32,
    "model.backbone.base_width": 8, "model.head.dim": 16, "train.batch_global": 4, "train.steps": 6,
    "train.evaluate_every": 6, "train.checkpoint_every": 2, "train.keep_last": 2,
    "train.precision": "float32",
    "train.metrics_every": 1, "train.pictures": 0, "launch.use_gpu": "no",
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts a small disk of its own; again with other options where it is mounted."""
    place = tmp_path / "disk"

    def mount(options: str) -> Path:
        again = f"remount,{options}" if place.exists() else options
        place.mkdir(exist_ok=True)
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", again, "tmpfs", str(place)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"no disk of its own can be mounted here: {done.stderr.strip()}")
        return place

    if os.geteuid():
        pytest.skip("only root may mount a disk")
    yield mount
    subprocess.run(["umount", str(place)], check=False)


def run(shards: str, run_dir: Path, strike: Callable[[str, int], None] = lambda point, step: None) -> None:
    """One attempt; `strike` hears of every point of a save."""

    class Struck(JournaledContext):
        def mark(self, point, step):
            strike(point, step)
            super().mark(point, step)

    context = Struck(run_dir, World(), begin_attempt(run_dir))
    try:
        fit(with_settings(recipe("laptop"), SETTINGS), shards, run_dir, context)
    finally:
        context.close()


def digests(run_dir: Path) -> list[str]:
    newest = checkpoint.newest_checkpoint(run_dir)
    assert newest is not None
    return [
        hashlib.sha256((newest / name).read_bytes()).hexdigest()
        for name in ("model.safetensors", "optimizer.safetensors")
    ]


def points(run_dir: Path) -> list[tuple[str, int]]:
    return sorted((k, r.step) for r in read_journal(run_dir) if isinstance(r, Metrics) for k in r.values)


def assert_ends_as_undisturbed(shards: str, run_dir: Path, undisturbed: Path) -> None:
    run(shards, undisturbed)
    run(shards, run_dir)
    assert digests(run_dir) == digests(undisturbed)
    assert points(run_dir) == points(undisturbed)


def test_a_disk_that_fills_up_in_a_checkpoint_loses_nothing_and_goes_on_when_there_is_room(
    shards: str, tmp_path: Path, disk: Callable[..., Path]
) -> None:
    run_dir = disk("size=64m") / "run"

    def fill(point: str, step: int) -> None:
        if (point, step) == ("write", 4):
            free = os.statvfs(run_dir)
            with (run_dir.parent / "something else").open("wb") as file:
                file.write(bytes((free.f_bavail - 60) * free.f_frsize))  # a quarter of a megabyte is left

    with pytest.raises(
        WorldStateError, match=r"step_00000004-0001.*No space left on device; make room"
    ) as told:
        run(shards, run_dir, fill)
    assert "\n" not in str(told.value)
    (kept,) = (run_dir / "checkpoints").iterdir()
    assert checkpoint.step_of(kept) == 2
    checkpoint.verify(kept)
    (run_dir.parent / "something else").unlink()
    assert_ends_as_undisturbed(shards, run_dir, tmp_path / "undisturbed")


def test_a_disk_that_becomes_read_only_under_a_checkpoint_loses_nothing(
    shards: str, tmp_path: Path, disk: Callable[..., Path]
) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "checkpoints").symlink_to(disk("size=64m"))

    def seal(point: str, step: int) -> None:
        if (point, step) == ("write", 4):
            disk("ro")

    with pytest.raises(WorldStateError, match=r"step_00000004-0001.*Read-only file system"):
        run(shards, run_dir, seal)
    commits = [r.step for r in read_journal(run_dir) if isinstance(r, Event) and r.name == "commit"]
    assert commits == [2]
    disk("rw")
    assert_ends_as_undisturbed(shards, run_dir, tmp_path / "undisturbed")


def test_a_disk_that_is_read_only_or_full_from_the_start_is_one_clear_line(
    shards: str, disk: Callable[..., Path]
) -> None:
    run_dir = disk("size=1m") / "run"
    run_dir.mkdir()
    disk("ro")
    with pytest.raises(WorldStateError, match="Read-only file system; make room or take another --runs"):
        run(shards, run_dir)
    disk("rw")
    (run_dir.parent / "something else").write_bytes(bytes(900_000))
    with pytest.raises(WorldStateError, match="No space left on device"):
        run(shards, run_dir)
    assert checkpoint.list_committed(run_dir) == []


def test_what_the_journal_cannot_take_is_one_clear_line(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = JournaledContext(tmp_path, World(), begin_attempt(tmp_path))

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    assert context._journal
    monkeypatch.setattr(context._journal, "append", refuse)
    with pytest.raises(
        WorldStateError, match=r"cannot record in .*journal: No space left on device; make room"
    ):
        context.metrics(1, {"x": 1.0})
    context.close()
