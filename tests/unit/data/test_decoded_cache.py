"""The decoded cache: the pixels of the shards or nothing, whoever is killed, full, or at work beside."""

import errno
import fcntl
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import DataConfig
from pipeline.data import decoded_cache
from pipeline.data.augment import CropBuffers, augment
from pipeline.data.dataset import ShardDataset
from pipeline.data.decoded_cache import DecodedCache
from pipeline.data.index import load_index
from pipeline.errors import SampleError

ROOT = Path(__file__).parents[3]
HEADER = """
import os, sys
from pipeline.data import decoded_cache
from pipeline.data.dataset import ShardDataset
root, folder = sys.argv[1:3]
dataset = ShardDataset.open(root, "train")
reader = dataset.reader(folder)
"""


def child(code: str, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", HEADER + code, *arguments], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def ended(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out + err


def refs(root: str):
    dataset = ShardDataset.open(root, "train")
    return dataset, [dataset.ref(*dataset.locate(index)) for index in range(len(dataset))]


def assert_sound(root: str, folder: Path) -> None:
    """Every sample that the cache hands out, and every one that a reader gives, is the shards'."""
    dataset, all_refs = refs(root)
    cache, reader = DecodedCache(str(folder), dataset._store), dataset.reader(str(folder))
    for ref in all_refs:
        sound = dataset.reader().read(ref)
        found = cache.find(ref.shard, ref.entry)
        if found is not None:
            assert np.array_equal(found[0], sound.image_HW3)
            assert np.array_equal(found[1], sound.label_HW)
        read = reader.read(ref)
        assert np.array_equal(read.image_HW3, sound.image_HW3)
        assert np.array_equal(read.label_HW, sound.label_HW)
    await_finishing()


def await_finishing() -> None:
    for thread in threading.enumerate():
        if thread.name == "decoded-cache":
            thread.join(30)


def test_crops_are_the_same_without_a_cache_with_an_empty_one_and_with_a_full_one(packed, tmp_path):
    config = DataConfig(input_height=32, input_width=48, crop_height=24, crop_width=40)
    dataset, all_refs = refs(packed)

    def crops(folder: str) -> list[bytes]:
        reader, made = dataset.reader(folder), []
        for position in range(44):
            into = CropBuffers(np.empty((24, 40, 3), np.uint8), np.empty((24, 40), np.uint8))
            augment(reader.open(all_refs[position % 11]), config, 3, position, into)
            made.append(into.image_hw3.tobytes() + into.label_hw.tobytes())
        await_finishing()
        return made

    expected = crops("")
    assert crops(str(tmp_path)) == expected
    assert crops(str(tmp_path)) == expected


def test_what_is_cached_is_not_read_again_and_a_whole_file_is_finished(own, tmp_path):
    cache = tmp_path / "cache"
    dataset, all_refs = refs(own)
    expected = [dataset.reader().read(ref) for ref in all_refs]
    reader = dataset.reader(str(cache))
    for ref in all_refs[:-1]:
        reader.read(ref)
    await_finishing()
    assert [p.suffix for p in sorted(cache.iterdir())].count(".filling") == 1  # the last shard's
    reader.read(all_refs[-1])
    await_finishing()
    assert {p.suffix for p in cache.iterdir()} == {".pixels"}
    for shard in dataset.split.shards:
        Path(own, shard.name).unlink()
    for readers in (reader, dataset.reader(str(cache))):
        for ref, sound in zip(all_refs, expected, strict=True):
            assert np.array_equal(readers.read(ref).image_HW3, sound.image_HW3)
            assert np.array_equal(readers.read(ref).label_HW, sound.label_HW)


# A picture is 36x52: 5616 bytes of image, 1872 of label, then the byte that says so.
@pytest.mark.parametrize("num_bytes", [0, 1, 3000, 5616, 6000, 5616 + 1872, 5616 + 1872 + 1])
def test_a_process_killed_at_any_byte_leaves_whole_samples_and_absent_ones(packed, tmp_path, num_bytes):
    """The child writes one sample whole, then stands still after so many bytes of the next."""
    process = child(
        """
left = int(sys.argv[3])
def write(descriptor, data, offset):
    global left
    part = data.tobytes()[:left]
    os.pwrite(descriptor, part, offset)
    left -= len(part)
    if left == 0:
        print("standing", flush=True)
        sys.stdin.read()
reader.read(dataset.ref(0, 0))
decoded_cache._write = write
reader.read(dataset.ref(0, 1))
""",
        packed, str(tmp_path), str(num_bytes),
    )  # fmt: skip
    assert process.stdout.readline() == "standing\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    dataset, all_refs = refs(packed)
    cache = DecodedCache(str(tmp_path), dataset._store)
    found = [cache.find(ref.shard, ref.entry) is not None for ref in all_refs]
    assert found == [True, num_bytes > 5616 + 1872] + [False] * 9
    assert_sound(packed, tmp_path)
    assert {p.suffix for p in tmp_path.iterdir()} == {".pixels"}


def test_processes_that_fill_at_once_leave_one_sound_file_a_shard(packed, tmp_path):
    fill = """
import random, threading
order = list(range(11)) * 3
random.Random(sys.argv[3]).shuffle(order)
print("ready", flush=True)
sys.stdin.readline()
for index in order:
    reader.read(dataset.ref(*dataset.locate(index)))
[thread.join() for thread in threading.enumerate() if thread.name == "decoded-cache"]
"""
    processes = [child(fill, packed, str(tmp_path), str(seed)) for seed in range(3)]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 3
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        ended(process)
    assert [p.suffix for p in tmp_path.iterdir()] == [".pixels"] * 4
    assert_sound(packed, tmp_path)


def test_what_an_earlier_boot_left_unfinished_is_removed_unread(packed, tmp_path, monkeypatch):
    """As a power loss may leave it: the byte says that a sample is there, the pixels are zeros."""
    dataset, all_refs = refs(packed)
    dataset.reader(str(tmp_path)).read(all_refs[0])
    (before,) = tmp_path.iterdir()
    with before.open("r+b") as file:
        file.seek(3)
        file.write(bytes(7488))
    boot = tmp_path / "boot_id"
    boot.write_text("another\n")
    monkeypatch.setattr(decoded_cache, "_BOOT_ID", boot)
    assert_sound(packed, tmp_path)
    assert not before.exists()


def test_what_another_machine_is_filling_on_a_shared_disk_is_left_alone(packed, tmp_path):
    dataset, all_refs = refs(packed)
    dataset.reader(str(tmp_path)).read(all_refs[0])
    (mine,) = tmp_path.iterdir()
    stem = mine.name.split(".")[0]
    mine.unlink()
    theirs, left_over = tmp_path / f"{stem}.boot-b.filling", tmp_path / f"{stem}.boot-c.filling"
    left_over.write_bytes(b"")
    with theirs.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        dataset.reader(str(tmp_path)).read(all_refs[0])
        assert theirs.exists()
    assert not left_over.exists()


@pytest.mark.parametrize("state", ["filling", "finished"])
@pytest.mark.parametrize("size", [0, 5, 10**6])
def test_a_file_of_the_wrong_size_is_made_anew(packed, tmp_path, state, size):
    dataset, all_refs = refs(packed)
    reader = dataset.reader(str(tmp_path))
    for ref in all_refs[:1] if state == "filling" else all_refs[:3]:
        reader.read(ref)
    await_finishing()
    (path,) = tmp_path.iterdir()
    assert path.suffix == {"filling": ".filling", "finished": ".pixels"}[state]
    path.write_bytes(b"\x01" * size)
    assert_sound(packed, tmp_path)


def test_a_limit_on_file_sizes_turns_the_cache_off_and_says_so_once(packed, tmp_path):
    said = ended(child(
        """
import logging, resource
logging.basicConfig(format="%(message)s")
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
for index in list(range(11)) * 2:
    ref = dataset.ref(*dataset.locate(index))
    assert (reader.read(ref).image_HW3 == dataset.reader().read(ref).image_HW3).all()
""",
        packed, str(tmp_path),
    ))  # fmt: skip
    assert said == f"[event] the decoded cache {tmp_path} grows no further: File too large\n"


@pytest.mark.parametrize("hindrance", ["no boot id", "a file in the way"])
def test_where_there_can_be_no_cache_samples_are_read_without_one(
    packed, tmp_path, monkeypatch, caplog, hindrance
):
    folder = tmp_path / "cache"
    if hindrance == "no boot id":
        monkeypatch.setattr(decoded_cache, "_BOOT_ID", tmp_path / "none")
    else:
        folder.write_bytes(b"")
    dataset, all_refs = refs(packed)
    reader = dataset.reader(str(folder))
    with caplog.at_level(logging.WARNING):
        for ref in all_refs:
            assert np.array_equal(reader.read(ref).image_HW3, dataset.reader().read(ref).image_HW3)
    assert len(caplog.records) == 1
    assert f"[event] the decoded cache {folder} grows no further" in caplog.text


def test_a_disk_that_fills_up_ends_the_filling_and_what_is_cached_serves_on(
    packed, tmp_path, monkeypatch, caplog
):
    dataset, all_refs = refs(packed)
    real, left = os.pwrite, [3 * 7489 + 4000]  # three samples, then half of one

    def pwrite(descriptor, data, offset):
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = real(descriptor, data[: left[0]], offset)
        left[0] -= written
        return written

    monkeypatch.setattr(decoded_cache.os, "pwrite", pwrite)
    reader = dataset.reader(str(tmp_path))
    with caplog.at_level(logging.WARNING):
        for ref in all_refs * 2:
            assert np.array_equal(reader.read(ref).image_HW3, dataset.reader().read(ref).image_HW3)
    assert [r.getMessage() for r in caplog.records] == [
        f"[event] the decoded cache {tmp_path} grows no further: No space left on device"
    ]
    cache = DecodedCache(str(tmp_path), dataset._store)
    assert [cache.find(ref.shard, ref.entry) is not None for ref in all_refs] == [True] * 3 + [False] * 8


def test_nothing_is_cached_on_a_disk_with_little_left(packed, tmp_path, monkeypatch, caplog):
    """Checkpoints and others need that room."""
    monkeypatch.setattr(decoded_cache, "SPARED_BYTES", 2**62)
    dataset, all_refs = refs(packed)
    reader = dataset.reader(str(tmp_path))
    with caplog.at_level(logging.WARNING):
        for ref in all_refs:
            assert np.array_equal(reader.read(ref).image_HW3, dataset.reader().read(ref).image_HW3)
    assert len(caplog.records) == 1
    assert "grows no further: its disk has less than" in caplog.text
    assert list(tmp_path.iterdir()) == []
    cache = DecodedCache(str(tmp_path), dataset._store)
    assert not any(cache.find(ref.shard, ref.entry) for ref in all_refs)


def test_a_full_ram_disk_kills_nobody(packed, tmp_path):
    """There, to look through a map at what was never written is a SIGBUS."""
    in_a_mount_of_its_own = ["unshare", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.call([*in_a_mount_of_its_own, "true"]):
        pytest.skip("a user who may mount nothing has no small RAM disk")
    code = """
disk = os.open(folder + "/fill", os.O_CREAT | os.O_WRONLY)
os.mkdir(folder + "/cache")
try:
    while True:
        os.write(disk, bytes(4096))
except OSError:
    pass
decoded_cache.SPARED_BYTES = 0
reader = dataset.reader(folder + "/cache")
for index in range(11):
    reader.read(dataset.ref(*dataset.locate(index)))
assert os.listdir(folder + "/cache") == []
"""
    mounted = 'mount -t tmpfs -o size=1m tmpfs "$2" && exec "$0" -c "$1" "$3" "$2"'
    arguments = [sys.executable, HEADER + code, str(tmp_path), packed]
    command = [*in_a_mount_of_its_own, "sh", "-c", mounted, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_cache_that_cannot_be_opened_costs_one_try_a_shard(packed, tmp_path, monkeypatch):
    """A try reads an index, and leaves no file open."""
    dataset, all_refs = refs(packed)
    loaded = []
    monkeypatch.setattr(
        decoded_cache, "load_index", lambda store, shard: loaded.append(shard) or load_index(store, shard)
    )

    def ftruncate(descriptor, num_bytes):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(decoded_cache.os, "ftruncate", ftruncate)
    reader = dataset.reader(str(tmp_path))
    for ref in all_refs * 3:
        reader.read(ref)
    assert loaded == list(dataset.split.shards)
    opened = [path.resolve() for path in Path("/proc/self/fd").iterdir()]
    assert not [path for path in opened if path.is_relative_to(tmp_path)]
    assert list(tmp_path.iterdir()) == []


def test_the_last_of_two_that_find_a_full_disk_removes_what_neither_filled(packed, tmp_path, monkeypatch):
    dataset, all_refs = refs(packed)
    readers = [dataset.reader(str(tmp_path)) for _ in range(2)]
    for reader in readers:
        assert reader._cache.find(all_refs[0].shard, all_refs[0].entry) is None  # both have it open
    monkeypatch.setattr(decoded_cache, "SPARED_BYTES", 2**62)
    for reader, left in zip(readers, (1, 0), strict=True):
        reader.read(all_refs[0])
        assert len(list(tmp_path.iterdir())) == left


def test_a_damaged_sample_is_never_cached(own, tmp_path):
    dataset, all_refs = refs(own)
    entry = all_refs[4].entry
    path = Path(own, all_refs[4].shard.name)
    data = bytearray(path.read_bytes())
    data[entry.image.offset + entry.image.bytes // 2] ^= 1
    path.write_bytes(data)
    for _ in range(2):
        with pytest.raises(SampleError, match=f"image of '{entry.key}'"):
            dataset.reader(str(tmp_path)).read(all_refs[4])


def test_ids_are_judged_by_the_classes_of_who_reads(packed, tmp_path):
    """The same shard under a manifest with fewer classes, after one with all of them filled the cache."""
    from pipeline.data.reader import SampleReader

    dataset, all_refs = refs(packed)
    dataset.reader(str(tmp_path)).read(all_refs[0])
    with pytest.raises(SampleError, match=r"train ids \[.*\] are outside the manifest's 2 classes"):
        SampleReader(dataset._store, 2, str(tmp_path)).read(all_refs[0])
