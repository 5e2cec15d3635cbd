"""What a server's answers come to: bytes, another try, or one clear error after a single request."""

import itertools
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import SO_LINGER, SOL_SOCKET

import pytest

from pipeline.config import StoreConfig
from pipeline.data.store import open_store
from pipeline.data.store.fetcher import Fetcher
from pipeline.data.store.patience import Patience, first_answer
from pipeline.data.store.transport import Part, Transient
from pipeline.errors import ShardError, WorldStateError
from tests.rclone_server import s3_environment

DATA = bytes(range(200))


class Scripted(BaseHTTPRequestHandler):
    """Serves DATA by ranges, after the answers of the server's `script`."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.asked.append((self.command, self.headers.get("Range")))
        answer = self.server.script.pop(0) if self.server.script else "sound"
        if answer == "closed":
            self.close_connection = True
            return
        if isinstance(answer, tuple):
            self.reply(answer[0], f"<Error><Code>{answer[1]}</Code></Error>".encode())
            return
        first, _, last = (self.headers["Range"] or "bytes=0-").removeprefix("bytes=").partition("-")
        part = DATA[int(first) : int(last or 199) + 1]
        span = f"bytes {first}-{int(first) + len(part) - 1}/{len(DATA)}"
        if answer == "whole":
            self.reply(200, DATA)
        elif answer == "other range":
            self.reply(206, part, {"Content-Range": "bytes 100-109/200"})
        elif answer == "sound":
            self.reply(206, part, {"Content-Range": span})
        else:
            self.reply(206, part, {"Content-Range": span}, cut=answer)

    do_HEAD = do_GET

    def reply(self, status, body, headers=(), cut=""):
        self.send_response_only(status)
        for name, value in {"Content-Length": str(len(body)), **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.close_connection = True
        if cut == "reset":
            self.connection.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        if cut == "stall":
            self.server.done.wait(20)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        pass


@pytest.fixture
def server():
    server = Server(("127.0.0.1", 0), Scripted)
    server.script, server.asked, server.done = [], [], threading.Event()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.done.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(params=["s3", "http"])
def store(request, server, tmp_path, monkeypatch):
    address = f"http://127.0.0.1:{server.server_port}"
    for name, value in s3_environment(address).items():
        monkeypatch.setenv(name, value)
    root = "s3://bucket/set" if request.param == "s3" else f"{address}/bucket/set"
    opened = open_store(root, StoreConfig(cache_dir=str(tmp_path), timeout_s=0.5, attempts=3))
    yield opened
    opened.close()


def test_a_read_is_one_request_for_exactly_its_range(store, server):
    assert store.read("a.tar", 50, 20) == DATA[50:70]
    assert store.read("a.tar", 0, 1) == DATA[:1]
    assert server.asked == [("GET", "bytes=50-69"), ("GET", "bytes=0-0")]


@pytest.mark.parametrize(
    "failure",
    [(500, "InternalError"), (502, ""), (503, "SlowDown"), (504, ""), (429, "TooManyRequests"),
     (408, "RequestTimeout"), (400, "RequestTimeout"), "closed", "reset", "short", "stall", "other range"],
)  # fmt: skip
def test_what_may_pass_is_tried_again_and_gives_the_same_bytes(store, server, failure):
    if failure == (400, "RequestTimeout") and store.root.startswith("http"):
        pytest.skip("plain http has no codes beside the status")
    server.script[:] = [failure, failure]
    assert store.read("a.tar", 50, 20) == DATA[50:70]
    assert set(server.asked) == {("GET", "bytes=50-69")}
    assert len(server.asked) >= 3 - (failure == "stall")


@pytest.mark.parametrize(
    ("status", "code", "error", "words"),
    [
        (404, "NoSuchKey", ShardError, "is not there"),
        (403, "SignatureDoesNotMatch", WorldStateError, "is refused to this process"),
        (403, "AccessDenied", WorldStateError, "is refused to this process"),
        (401, "Unauthorized", WorldStateError, "is refused to this process"),
        (416, "InvalidRange", ShardError, "is truncated"),
        (410, "Gone", WorldStateError, "cannot be read"),
    ],
)
def test_what_will_not_pass_is_one_request_and_one_line(store, server, status, code, error, words):
    server.script[:] = [(status, code)] * 9
    with pytest.raises(error, match=r"^[^\n]+$") as raised:
        store.read("set.tar", 50, 20)
    assert words in str(raised.value)
    assert f"{store.root}/set.tar" in str(raised.value)
    assert len(server.asked) == 1


def test_wrong_keys_say_where_keys_are_kept(store, server):
    server.script[:] = [(403, "InvalidAccessKeyId")]
    where = "AWS_ACCESS_KEY_ID" if store.root.startswith("s3") else "~/.netrc"
    with pytest.raises(WorldStateError, match=where):
        store.read("a.tar", 50, 20)


@pytest.mark.parametrize("method", ["read", "size"])
def test_a_server_that_stays_down_is_unreachable_after_the_tries_that_are_allowed(store, server, method):
    server.script[:] = [(503, "")] * 9
    with pytest.raises(WorldStateError, match=r"is unreachable: 3 tries, the last one: it answered 503"):
        store.read("a.tar", 50, 20) if method == "read" else store.size("a.tar")
    assert len(server.asked) == 3


def test_nobody_listening_is_unreachable(store, server):
    server.shutdown()
    server.server_close()
    with pytest.raises(WorldStateError, match=r"a\.tar is unreachable: 3 tries"):
        store.read("a.tar", 50, 20)


def test_a_server_that_ignores_ranges_is_refused_and_not_read_to_the_end(store, server):
    server.script[:] = ["whole"]
    with pytest.raises(ShardError, match=r"sends whole files only"):
        store.read("a.tar", 50, 20)
    assert len(server.asked) == 1


def test_absence_and_size_are_told_by_one_request(store, server):
    server.script[:] = [(404, "")]
    assert not store.exists("a.tar")
    assert store.exists("a.tar")
    assert [method for method, _ in server.asked] == ["HEAD", "HEAD"]


def test_no_keys_at_all_is_one_clear_line(server, tmp_path, monkeypatch):
    for name, value in s3_environment(f"http://127.0.0.1:{server.server_port}").items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    store = open_store("s3://bucket/set", StoreConfig(cache_dir=str(tmp_path)))
    with pytest.raises(WorldStateError, match=r"NoCredentialsError.*AWS_ACCESS_KEY_ID"):
        store.read("a.tar", 50, 20)
    assert server.asked == []


class Waiting:
    """A request that takes as long as it is told to."""

    def __init__(self, *answers):
        self.answers, self.asked, self.release = list(answers), 0, threading.Event()

    def __call__(self):
        self.asked += 1
        answer = self.answers.pop(0)
        if answer == "silent":
            assert self.release.wait(20)
            raise Transient("silence")
        if isinstance(answer, Exception):
            raise answer
        return Part(answer, len(answer))


def known(seconds: float = 0.001) -> Patience:
    patience = Patience()
    for _ in range(20):
        patience.note(4, seconds)
    return patience


def test_an_unusually_slow_request_is_asked_twice_and_the_first_answer_counts():
    request = Waiting("silent", b"data")
    assert first_answer(known(), 4, request).data == b"data"
    assert request.asked == 2
    request.release.set()


def test_the_slow_answer_counts_where_the_second_request_fails():
    patience, first = known(), threading.Event()

    def request():
        if first.is_set():
            release.set()
            raise Transient("503")
        first.set()
        assert release.wait(20)
        return Part(b"slow", 4)

    release = threading.Event()
    assert first_answer(patience, 4, request).data == b"slow"


def test_second_requests_are_few_where_everything_is_slow():
    patience = known()
    assert sum(patience.may_ask_again() for _ in range(100)) <= 8
    for _ in range(100):
        patience.note(4, 1.0)
    assert sum(patience.may_ask_again() for _ in range(100)) <= 10


def test_patience_is_a_few_medians_and_knows_sizes_apart():
    patience = known(0.1)
    assert patience.limit_s(4) == pytest.approx(0.3)
    for _ in range(20):
        patience.note(1 << 23, 1.0)
    assert patience.limit_s(4) == pytest.approx(0.3)
    assert patience.limit_s(1 << 23) == pytest.approx(3.0)
    assert patience.limit_s(1 << 15) == pytest.approx(3.0), "like the slowest, where a size is new"


def test_a_silent_request_is_not_waited_for_when_the_second_one_fails():
    request = Waiting("silent", Transient("503"))
    with pytest.raises(Transient, match="503"):
        first_answer(known(), 4, request)
    assert not request.release.is_set()
    request.release.set()


def test_an_error_of_a_request_is_raised_where_it_is_waited_for():
    with pytest.raises(ShardError, match="gone"):
        first_answer(known(), 4, Waiting(ShardError("gone")))


def test_pauses_grow_and_are_not_alike(monkeypatch):
    class Down:
        def get(self, *_):
            raise Transient("503")

    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    for _ in range(2):
        with pytest.raises(WorldStateError, match="6 tries"):
            Fetcher(Down(), 6).range("s3://b/x", 0, 4)
    first, second = slept[:5], slept[5:]
    assert all(later > 1.5 * earlier for earlier, later in itertools.pairwise(first))
    assert first != second
    assert sum(first) < 20.0
