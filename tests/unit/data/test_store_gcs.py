"""gs:// by Google's own client, against a server that speaks as much of its language as reading needs."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pipeline.config import StoreConfig
from pipeline.data.store import open_store
from pipeline.errors import ShardError, WorldStateError

DATA = bytes(range(200))


class Storage(BaseHTTPRequestHandler):
    """The object `bucket/set/a.tar`, after the statuses of the server's `script`."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.asked += 1
        status, headers, body = 200, {"Content-Type": "application/json"}, b"{}"
        if self.server.script:
            status = self.server.script.pop(0)
        elif self.path.startswith("/download/") and "set%2Fa.tar" in self.path:
            first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
            body, status = DATA[int(first) : int(last) + 1], 206
            headers = {"Content-Range": f"bytes {first}-{int(first) + len(body) - 1}/{len(DATA)}"}
        elif "set%2Fa.tar" in self.path:
            link = f"http://127.0.0.1:{self.server.server_port}/download/storage/v1/b/bucket/o/set%2Fa.tar?alt=media"
            body = json.dumps(
                {"name": "set/a.tar", "bucket": "bucket", "size": "200", "mediaLink": link}
            ).encode()
        elif "/o/" in self.path:
            status = 404
        self.send_response_only(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    pytest.importorskip("google.cloud.storage", reason="needs the extra: pip install 'smart_open[gcs]'")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Storage)
    server.daemon_threads, server.script, server.asked = True, [], 0
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def store(server, tmp_path, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "test")
    opened = open_store("gs://bucket/set", StoreConfig(cache_dir=str(tmp_path), timeout_s=2.0, attempts=3))
    yield opened
    opened.close()


def test_ranges_whole_files_sizes_and_absence(store):
    assert store.read("a.tar", 50, 20) == DATA[50:70]
    assert store.read_all("a.tar") == DATA
    assert store.size("a.tar") == len(DATA)
    assert not store.exists("b.tar")
    with pytest.raises(ShardError, match=r"gs://bucket/set/b\.tar is not there \(404"):
        store.read("b.tar", 0, 1)
    with pytest.raises(ShardError, match=r"gs://bucket/set/a\.tar is truncated"):
        store.read("a.tar", 190, 20)


def test_what_may_pass_is_tried_again_and_what_will_not_is_not(store, server):
    server.script[:] = [503, 503]
    assert store.read("a.tar", 50, 20) == DATA[50:70]
    server.script[:] = [503] * 99
    with pytest.raises(WorldStateError, match=r"is unreachable: 3 tries, the last one: it answered 503"):
        store.read("a.tar", 50, 20)
    server.script[:], server.asked = [403] * 9, 0
    with pytest.raises(WorldStateError, match=r"is refused .* GOOGLE_APPLICATION_CREDENTIALS"):
        store.size("a.tar")
    assert server.asked <= 2
