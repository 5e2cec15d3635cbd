"""Shards brought ahead of their use: each once, in the background, by threads that end."""

import hashlib
import shutil
import threading
import time

import pytest

from pipeline.config import StoreConfig
from pipeline.data.shard_table import ShardEntry, index_name
from pipeline.data.staging import Staged, stage_shards
from pipeline.data.store import remote
from pipeline.data.store.incoming import Incoming
from pipeline.data.store.remote import RemoteStore
from pipeline.data.store.transport import Part, Transient
from pipeline.errors import ShardError, WorldStateError

FILES = {f"train/train-{number:06d}.tar": bytes([number + 1]) * 3000 for number in range(20)}
INDEXES = {index_name(name): f"{{{number}}}\n".encode() for number, name in enumerate(FILES)}
SHARDS = [
    ShardEntry(name, 1, len(data), hashlib.sha256(data).hexdigest(), hashlib.sha256(index).hexdigest())
    for (name, data), index in zip(FILES.items(), INDEXES.values(), strict=True)
]


class Server:
    """A transport over FILES that counts, and waits where it is told to."""

    def __init__(self):
        self.asked, self.open, self.files = [], threading.Event(), FILES | INDEXES
        self.open.set()

    def get(self, url, offset, num_bytes):
        name = url.removeprefix("s3://bucket/set/")
        self.asked.append((name, offset, num_bytes))
        assert self.open.wait(20)
        if name not in self.files:
            raise ShardError(f"{url} is not there")
        return Part(self.files[name][offset : offset + num_bytes], len(self.files[name]))

    def size(self, url):
        return len(self.files[url.removeprefix("s3://bucket/set/")])

    def close(self):
        pass


@pytest.fixture
def server(monkeypatch) -> Server:
    server = Server()
    monkeypatch.setattr(remote, "open_transport", lambda *_: server)
    return server


@pytest.fixture
def store(server, tmp_path):
    opened = RemoteStore("s3://bucket/set", StoreConfig(cache_dir=str(tmp_path), downloads=3, attempts=2))
    yield opened
    server.open.set()
    opened.close()


def wait_until(condition) -> None:
    give_up_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < give_up_s
        time.sleep(0.005)


def cached(store: RemoteStore, server: Server, shard: ShardEntry) -> bool:
    """Whether the shard is read without a request."""
    before = len(server.asked)
    assert store.read(shard.name, 100, 50) == FILES[shard.name][100:150]
    return (shard.name, 100, 50) not in server.asked[before:]


def whole(server: Server) -> list[str]:
    return [name for name, _, num_bytes in server.asked if num_bytes == 3000]


def test_staging_returns_at_once_and_reads_go_on_meanwhile(store, server):
    server.open.clear()
    for shard in SHARDS:
        store.stage(shard)
    wait_until(lambda: len(whole(server)) == 3)
    server.open.set()
    assert store.read(SHARDS[19].name, 100, 50) == FILES[SHARDS[19].name][100:150]
    wait_until(lambda: all(cached(store, server, shard) for shard in SHARDS))
    assert sorted(whole(server)) == sorted(FILES), "each once"


def test_a_shard_announced_again_is_not_downloaded_again(store, server):
    for _ in range(3):
        for shard in SHARDS[:2]:
            store.stage(shard)
        wait_until(lambda: all(cached(store, server, shard) for shard in SHARDS[:2]))
    assert len(whole(server)) == 2


def test_two_stores_of_a_node_download_each_shard_once(store, server, tmp_path):
    other = RemoteStore("s3://bucket/set", StoreConfig(cache_dir=str(tmp_path)))
    for shard in SHARDS:
        store.stage(shard)
        other.stage(shard)
    wait_until(lambda: all(cached(one, server, shard) for shard in SHARDS for one in (store, other)))
    other.close()
    assert sorted(whole(server)) == sorted(FILES)


def test_a_dropped_shard_that_was_announced_is_downloaded_again(store, server):
    store.stage(SHARDS[0])
    wait_until(lambda: cached(store, server, SHARDS[0]))
    store.drop(SHARDS[0].name)
    wait_until(lambda: cached(store, server, SHARDS[0]))
    assert len(whole(server)) == 2


def test_a_shard_that_is_dropped_before_its_download_has_ended_is_downloaded_again(
    store, server, monkeypatch
):
    """The copy is there, and somebody finds it bad, before the thread that made it knows that it is."""
    kept, go_on = threading.Event(), threading.Event()
    keep = Incoming.keep

    def keep_and_wait(incoming):
        done = keep(incoming)
        kept.set()
        assert go_on.wait(20)
        return done

    monkeypatch.setattr(Incoming, "keep", keep_and_wait)
    store.stage(SHARDS[0])
    assert kept.wait(20)
    store.drop(SHARDS[0].name)
    go_on.set()
    wait_until(lambda: cached(store, server, SHARDS[0]))
    assert len(whole(server)) == 2


def test_other_bytes_than_the_manifests_are_asked_for_twice_and_never_kept(store, server, caplog):
    name = SHARDS[0].name
    server.files[name] = b"?" * 3000
    with pytest.raises(ShardError, match=r"train-000000\.tar is not the shard that the manifest lists"):
        store.bring(SHARDS[0])
    assert len(whole(server)) == 2
    assert store.read(name, 0, 10) == b"?" * 10, "from the server itself; its crc32 is the reader's to check"
    assert len(server.asked) == 3


def test_an_absent_shard_does_not_end_the_downloads_of_others(store, server):
    del server.files[SHARDS[0].name]
    for shard in SHARDS[:5]:
        store.stage(shard)
    wait_until(lambda: all(cached(store, server, shard) for shard in SHARDS[1:5]))


@pytest.mark.parametrize("gone", ["shards", "."])
def test_a_cache_that_is_removed_costs_downloads_and_not_their_threads(store, server, caplog, gone):
    """Somebody makes room by hand."""
    server.open.clear()
    store.stage(SHARDS[0])
    wait_until(lambda: len(whole(server)) == 1)
    shutil.rmtree(store._cache.folder / gone)
    server.open.set()
    wait_until(lambda: "not downloaded: cannot keep s3://bucket/set/train/train-000000.tar" in caplog.text)
    shutil.rmtree(store._cache.folder, ignore_errors=True)
    with pytest.raises(WorldStateError, match="No such file or directory; make room there, or type --data"):
        store.bring(SHARDS[1])
    for name in ("shards", "locks"):
        (store._cache.folder / name).mkdir(parents=True)
    for shard in SHARDS[:5]:
        store.stage(shard)
    wait_until(lambda: all(cached(store, server, shard) for shard in SHARDS[:5]))


def test_staging_more_than_fits_keeps_what_is_needed_first(server, tmp_path, monkeypatch):
    """However long it takes: what was brought a minute ago is what a run begins with."""
    monkeypatch.setattr("pipeline.data.store.cache.IN_USE_S", 0.0)
    config = StoreConfig(cache_dir=str(tmp_path), cache_gb=10_000 / 1e9, downloads=1)
    assert stage_shards("s3://bucket/set", SHARDS, config) == Staged(shards=3, bytes=9000, left_out=17)
    before = len(server.asked)
    assert stage_shards("s3://bucket/set", SHARDS[:3], config) == Staged(shards=3, bytes=9000)
    assert len(server.asked) == before


def test_threads_are_few_and_end_with_the_store(server, tmp_path):
    before = set(threading.enumerate())
    store = RemoteStore("s3://bucket/set", StoreConfig(cache_dir=str(tmp_path), downloads=3))
    server.open.clear()
    for shard in SHARDS:
        store.stage(shard)
    wait_until(lambda: len(whole(server)) == 3)
    made = set(threading.enumerate()) - before
    assert sum(thread.name == "shard-download" for thread in made) == 3
    assert all(thread.daemon for thread in made)
    server.open.set()
    store.close()
    wait_until(lambda: set(threading.enumerate()) <= before)
    assert len(whole(server)) < len(SHARDS), "what waited was given up"


def test_a_failure_that_passes_costs_a_part_and_not_the_shard(store, server, monkeypatch):
    monkeypatch.setattr("pipeline.data.store.downloads.PART_BYTES", 1000)
    failed, get = [], server.get

    def fail_once(url, offset, num_bytes):
        if offset == 2000 and not failed:
            failed.append(url)
            raise Transient("reset")
        return get(url, offset, num_bytes)

    monkeypatch.setattr(server, "get", fail_once)
    assert store.bring(SHARDS[0]) == "here"
    assert [offset for name, offset, _ in server.asked if name.endswith(".tar")] == [0, 1000, 2000]


def test_the_index_of_a_staged_shard_is_read_without_the_server(store, server, tmp_path):
    config = StoreConfig(cache_dir=str(tmp_path), downloads=1)
    assert stage_shards("s3://bucket/set", SHARDS[:2], config) == Staged(shards=2, bytes=6000)
    before = len(server.asked)
    for shard in SHARDS[:2]:
        name = index_name(shard.name)
        assert store.read_all(name, shard.index_sha256) == INDEXES[name]
    assert len(server.asked) == before
    assert store.read_all(index_name(SHARDS[0].name)) == INDEXES[index_name(SHARDS[0].name)]
    assert len(server.asked) == before + 1, "nothing vouches for a copy without its sha256"


def test_a_kept_index_that_went_bad_is_read_from_the_server_and_staged_again(store, server, tmp_path):
    shard, name = SHARDS[0], index_name(SHARDS[0].name)
    assert store.bring(shard) == "here"
    (copy,) = tmp_path.glob(f"**/shards/*/*/{shard.index_sha256}")
    copy.write_bytes(b"?" * copy.stat().st_size)
    assert store.read_all(name, shard.index_sha256) == INDEXES[name]
    assert not copy.exists()
    assert store.bring(shard) == "here"
    assert copy.read_bytes() == INDEXES[name]
    assert len(whole(server)) == 1


def test_an_index_that_is_not_the_manifests_is_refused_and_not_kept(store, server, tmp_path):
    server.files[index_name(SHARDS[0].name)] = b"[]\n"
    with pytest.raises(ShardError, match=r"train-000000\.index\.jsonl is not the index that the manifest"):
        store.bring(SHARDS[0])
    assert len([path for path in tmp_path.glob("**/shards/*/*/*") if path.is_file()]) == 1, "the shard alone"
