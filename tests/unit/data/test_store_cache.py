"""The disk cache: only whole, checked shards are in use, and the limit holds for all processes together."""

import hashlib
import logging
import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.data.store.cache import IN_USE_S, SPARED_BYTES, ShardCache, private_folder
from pipeline.errors import ConfigError, WorldStateError

URL = "s3://bucket/train/train-{:06d}.tar"


def content(number: int, num_bytes: int = 1000) -> bytes:
    return bytes([number % 256]) * num_bytes


def put(cache: ShardCache, number: int, num_bytes: int = 1000) -> bool:
    data = content(number, num_bytes)
    url, sha256 = URL.format(number), hashlib.sha256(data).hexdigest()
    with cache.claimed(url) as mine:
        assert mine
        incoming = cache.begin(url, sha256, num_bytes)
        if incoming is None:
            return False
        incoming.add(data)
        return incoming.keep()


def age(cache: ShardCache, number: int, seconds: float) -> None:
    """As if the shard had been used that long ago."""
    sha256 = hashlib.sha256(content(number)).hexdigest()
    (path,) = cache.folder.glob(f"shards/*/*/{sha256}")
    os.utime(path, (time.time() - seconds,) * 2)


def held(cache: ShardCache, count: int) -> set[int]:
    """Numbers of the shards that a process which knows nothing finds."""
    other = ShardCache(str(cache.folder.parent), 10**9)
    return {n for n in range(count) if other.read(URL.format(n), 0, 10) == content(n, 10)}


def files(cache: ShardCache) -> list[Path]:
    return [path for path in cache.folder.glob("shards/**/*") if path.is_file()]


def test_what_was_put_is_read_by_every_process(tmp_path):
    cache = ShardCache(str(tmp_path), 10**6)
    assert cache.read(URL.format(1), 0, 10) is None
    assert put(cache, 1)
    for reader in (cache, ShardCache(str(tmp_path), 10**6)):
        assert reader.read(URL.format(1), 990, 10) == content(1, 10)
        assert reader.read(URL.format(1), 990, 11) is None, "never fewer bytes than asked for"
        assert reader.read(URL.format(2), 0, 10) is None


def test_the_key_is_the_whole_address_and_not_the_last_name(tmp_path):
    cache = ShardCache(str(tmp_path), 10**6)
    assert put(cache, 1)
    assert cache.read(URL.format(1).replace("train/", "val/", 1), 0, 10) is None


def test_bytes_with_another_sha256_are_never_in_use(tmp_path):
    cache = ShardCache(str(tmp_path), 10**6)
    incoming = cache.begin(URL.format(1), hashlib.sha256(b"x").hexdigest(), 4)
    incoming.add(b"evil")
    assert cache.read(URL.format(1), 0, 4) is None
    assert not incoming.keep()
    assert cache.read(URL.format(1), 0, 4) is None
    assert files(cache) == []


def test_the_shard_used_longest_ago_goes_first_and_the_limit_holds(tmp_path):
    cache = ShardCache(str(tmp_path), 3500)
    for number in range(3):
        assert put(cache, number)
        age(cache, number, IN_USE_S + 100 - number)
    assert cache.holds(URL.format(0), hashlib.sha256(content(0)).hexdigest(), 1000)  # a use of the oldest
    assert put(cache, 3)
    assert held(cache, 4) == {0, 2, 3}
    assert sum(path.stat().st_size for path in files(cache)) <= 3500


def test_shards_in_use_are_kept_and_too_small_a_cache_says_which_size_would_do(tmp_path, caplog):
    cache = ShardCache(str(tmp_path), 2500)
    logging.getLogger("pipeline").propagate = True
    assert put(cache, 0)
    assert put(cache, 1)
    with caplog.at_level(logging.WARNING):
        assert not put(cache, 2)
        assert not put(cache, 3)
    assert held(cache, 4) == {0, 1}
    (record,) = caplog.records
    assert "--data.store.cache_gb 0.00" in record.getMessage()


def test_a_disk_with_less_room_than_the_limit_is_not_filled(tmp_path, monkeypatch):
    cache = ShardCache(str(tmp_path), 10**9)
    free = SPARED_BYTES + 2500
    monkeypatch.setattr(
        "shutil.disk_usage",
        lambda _: SimpleNamespace(free=free - sum(path.stat().st_size for path in files(cache))),
    )
    assert put(cache, 0)
    assert put(cache, 1)
    assert not put(cache, 2), "both are in use"
    age(cache, 0, IN_USE_S + 1)
    assert put(cache, 2)
    assert held(cache, 3) == {1, 2}


def test_a_download_makes_no_room_however_long_its_server_is_silent(tmp_path):
    cache = ShardCache(str(tmp_path), 2500)
    url, sha256 = URL.format(0), hashlib.sha256(content(0)).hexdigest()
    with cache.claimed(url):
        incoming = cache.begin(url, sha256, 1000)
        (path,) = cache.folder.glob("shards/*/*/*")
        os.utime(path, (time.time() - IN_USE_S - 1,) * 2)
        assert put(cache, 1)
        assert not put(cache, 2)
        incoming.add(content(0))
        assert incoming.keep()
    assert held(cache, 3) == {0, 1}


def test_an_evicted_shard_stays_readable_to_whoever_has_it_open(tmp_path):
    reader, writer = ShardCache(str(tmp_path), 1500), ShardCache(str(tmp_path), 1500)
    assert put(writer, 0)
    assert reader.read(URL.format(0), 0, 10) == content(0, 10)
    age(writer, 0, IN_USE_S + 1)
    assert put(writer, 1)
    assert held(writer, 2) == {1}
    assert reader.read(URL.format(0), 500, 10) == content(0, 10)


def test_a_copy_that_proved_bad_is_forgotten_but_not_the_good_one_that_took_its_place(tmp_path):
    first, second = ShardCache(str(tmp_path), 10**6), ShardCache(str(tmp_path), 10**6)
    assert put(first, 1)
    (path,) = files(first)
    path.chmod(0o600)
    path.write_bytes(b"bad!" * 250)
    assert first.read(URL.format(1), 0, 4) == second.read(URL.format(1), 0, 4) == b"bad!"
    first.forget(URL.format(1))
    assert first.read(URL.format(1), 0, 4) is None
    assert put(first, 1)
    second.forget(URL.format(1))
    assert first.read(URL.format(1), 0, 4) == second.read(URL.format(1), 0, 4) == content(1, 4)


def test_new_content_at_an_address_takes_the_place_of_the_old(tmp_path):
    cache, url, data = ShardCache(str(tmp_path), 10**6), URL.format(1), b"new!" * 250
    assert put(cache, 1)
    with cache.claimed(url):
        incoming = cache.begin(url, hashlib.sha256(data).hexdigest(), 1000)
        incoming.add(data)
        assert incoming.keep()
    for reader in (cache, ShardCache(str(tmp_path), 10**6)):
        assert reader.read(url, 0, 4) in (b"new!", None)
        assert reader.read(url, 0, 4) == b"new!"
    assert len(files(cache)) == 1


def test_a_copy_of_another_length_is_not_held(tmp_path):
    cache = ShardCache(str(tmp_path), 10**6)
    assert put(cache, 1)
    (path,) = files(cache)
    os.truncate(path, 999)
    assert not cache.holds(URL.format(1), hashlib.sha256(content(1)).hexdigest(), 1000)


KILLED = """
import hashlib, os, signal, sys
from pipeline.data.store.cache import ShardCache
data = bytes([7]) * 1000
cache = ShardCache(sys.argv[1], 10**6)
with cache.claimed(sys.argv[2]) as mine:
    assert mine
    if sys.argv[3] == "claimed": os.kill(os.getpid(), signal.SIGKILL)
    incoming = cache.begin(sys.argv[2], hashlib.sha256(data).hexdigest(), 1000)
    if sys.argv[3] == "begun": os.kill(os.getpid(), signal.SIGKILL)
    incoming.add(data[:600]); incoming._file.flush()
    if sys.argv[3] == "half": os.kill(os.getpid(), signal.SIGKILL)
    incoming.add(data[600:])
    if sys.argv[3] == "whole": os.kill(os.getpid(), signal.SIGKILL)
    os.fsync = lambda number: os.kill(os.getpid(), signal.SIGKILL)
    incoming.keep()
"""


@pytest.mark.parametrize("moment", ["claimed", "begun", "half", "whole", "sync"])
def test_a_download_killed_at_any_moment_leaves_nothing_in_use_and_is_cleaned_by_the_next(tmp_path, moment):
    url = URL.format(7)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), url, moment], check=False)
    assert killed.returncode == -9
    cache = ShardCache(str(tmp_path), 2500)
    assert cache.read(url, 0, 10) is None
    assert put(cache, 1), "the next download, of another shard, deletes what was left"
    assert [path.stat().st_size for path in files(cache)] == [1000]
    assert put(cache, 7)
    assert cache.read(url, 0, 10) == content(7, 10)


def test_the_folder_is_private_and_somebody_elses_is_refused(tmp_path, monkeypatch):
    folder = private_folder(str(tmp_path))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o777)
    assert stat.S_IMODE(private_folder(str(tmp_path)).stat().st_mode) == 0o700
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    (tmp_path / "ccs-shards-12345").mkdir()
    with pytest.raises(ConfigError, match=r"ccs-shards-12345 is a link, or belongs to another user"):
        private_folder(str(tmp_path))


def test_a_link_in_the_folders_place_is_refused(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / f"ccs-shards-{os.getuid()}").symlink_to(tmp_path / "target")
    with pytest.raises(ConfigError, match="is a link"):
        private_folder(str(tmp_path))


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorldStateError, match=r"type --data\.store\.cache_dir"):
        private_folder(str(tmp_path / "file"))


def test_a_full_disk_reads_over_the_network_instead(tmp_path, monkeypatch, caplog):
    cache = ShardCache(str(tmp_path), 10**6)
    logging.getLogger("pipeline").propagate = True

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert not put(cache, 1)
    assert files(cache) == []
    assert "No space left on device" in caplog.text
