"""Objects with conditions, on a server that heeds them and on one that does not."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest

from pipeline.config import StoreConfig
from pipeline.data.store import objects
from pipeline.data.store.objects import ObjectStore
from pipeline.errors import ShardError, WorldStateError
from tests.faulty_proxy import FaultyProxy
from tests.moto_server import serving_s3
from tests.objects_in_memory import ObjectsInMemory
from tests.rclone_server import s3_environment, serving

QUICK = StoreConfig(timeout_s=2.0, attempts=4)


@pytest.fixture(scope="module")
def place():
    with serving_s3() as place, pytest.MonkeyPatch.context() as patch:
        for name, value in s3_environment(f"http://{place}").items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="runs")
        yield place


@pytest.fixture
def store(place, request):
    store = ObjectStore(f"s3://runs/{hashlib.sha1(request.node.name.encode()).hexdigest()}", QUICK)
    yield store
    store.close()


@pytest.fixture(params=["server", "memory"])
def either(request, store):
    """The store, and what tests have in its place."""
    return store if request.param == "server" else ObjectsInMemory("s3://runs/x", {})


def test_an_object_is_made_once_and_replaced_by_whoever_read_it_last(either):
    store = either
    assert store.read("a") is None
    assert store.create("a", b"one")
    assert not store.create("a", b"two")
    assert store.create("a", b"one"), "an answer that was lost: it is there as it was sent"
    first = store.read("a")
    assert first is not None
    second = store.replace("a", b"two", first.tag)
    assert second is not None
    assert store.replace("a", b"three", first.tag) is None
    assert store.replace("absent", b"x", first.tag) is None
    assert store.replace("a", b"two", first.tag) == second, "an answer that was lost"
    there = store.read("a")
    assert there is not None
    assert (there.data, there.tag) == (b"two", second)
    assert store.heeds_conditions("a")
    assert store.names("") == {"a": 3}


def test_of_many_that_make_an_object_at_once_one_does(either):
    store = either
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda n: store.create("a", bytes([n])), range(32)))
    assert sum(made) == 1


def test_files_of_any_size_come_back_as_they_were_and_go_when_they_are_removed(either, tmp_path):
    store = either
    sizes = (0, 1, (8 << 20), (8 << 20) + 1, 10_000_001)
    files = {f"f/{size}.bin": hashlib.shake_128(str(size).encode()).digest(size) for size in sizes}
    for name, data in files.items():
        (tmp_path / "sent").write_bytes(data)
        store.put(name, tmp_path / "sent")
        store.fetch(name, tmp_path / "there" / name)
        assert (tmp_path / "there" / name).read_bytes() == data
        assert store.size(name) == len(data)
    assert store.names("f/") == {name: len(data) for name, data in files.items()}
    for name in files:
        store.remove(name)
        store.remove(name)
    assert store.names("") == {}
    with pytest.raises(ShardError, match="is not there"):
        store.fetch("f/0.bin", tmp_path / "x")
    assert store.size("f/0.bin") is None


def test_more_names_than_one_answer_holds_are_all_listed(store, monkeypatch):
    monkeypatch.setattr(objects, "_NAMES_AT_ONCE", 3)
    for number in range(10):
        store.create(f"n/{number}", b"x")
    assert store.names("n/") == {f"n/{number}": 1 for number in range(10)}


def test_a_bucket_that_is_not_there_is_one_line(place, tmp_path):
    absent = ObjectStore("s3://absent/runs", QUICK)
    for attempt in (lambda: absent.names(""), lambda: absent.create("a", b""), lambda: absent.read("a")):
        with pytest.raises(
            (WorldStateError, ShardError), match=r"s3://absent/runs/.* not there|check"
        ) as told:
            attempt()
        assert "\n" not in str(told.value)
    absent.close()


def test_a_server_that_knows_no_conditions_is_found_out(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    with serving("s3", tmp_path) as place:
        for name, value in s3_environment(f"http://{place}").items():
            monkeypatch.setenv(name, value)
        store = ObjectStore("s3://runs/p", QUICK)
        assert store.create("a", b"one")
        assert not store.heeds_conditions("a")
        store.close()


def test_conditions_hold_over_a_network_that_fails(place, monkeypatch):
    """Each number is made once, whatever answers are lost; the server's own list is the oracle."""
    with FaultyProxy(place, faults=True, seed=3).running() as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        store = ObjectStore("s3://runs/faulty", StoreConfig(timeout_s=0.5, attempts=8))
        for number in range(60):
            assert store.create(f"n/{number}", b"mine %d" % number)
        tag = store.read("n/0").tag
        for number in range(60):
            tag = store.replace("n/0", b"again %d" % number, tag)
            assert tag is not None
        assert proxy.faults()["reset"] + proxy.faults()["stall"] > 0
        store.close()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{place}")
    client = boto3.client("s3")
    there = {
        f"n/{n}": client.get_object(Bucket="runs", Key=f"faulty/n/{n}")["Body"].read() for n in range(60)
    }
    assert there == {f"n/{n}": b"mine %d" % n for n in range(60)} | {"n/0": b"again 59"}


def test_a_store_that_stays_away_is_one_line_after_bounded_tries(place, monkeypatch):
    with FaultyProxy(place, faults=False).running() as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        store = ObjectStore("s3://runs/away", QUICK)
        proxy.down = True
        with pytest.raises(WorldStateError, match=r"s3://runs/away/a is unreachable: 4 tries"):
            store.create("a", b"")
        assert len(proxy.seen) == 4
        proxy.down = False
        assert store.create("a", b"")
        store.close()


def test_names_that_lead_elsewhere_are_never_written(store, tmp_path):
    with pytest.raises(ShardError, match="not a plain name"):
        store.fetch("../../etc/passwd", tmp_path / "x")
    assert not Path(tmp_path / "x").exists()
