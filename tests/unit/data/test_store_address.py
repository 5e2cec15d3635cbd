"""Addresses: what is not on the list is refused before anything is opened, started or sent."""

import http.client
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psutil
import pytest

from pipeline.config import StoreConfig
from pipeline.data.store import open_store
from pipeline.data.store.address import is_address, parse_address
from pipeline.errors import ConfigError, PipelineError, ShardError
from tests.rclone_server import s3_environment


@pytest.fixture
def config(tmp_path) -> StoreConfig:
    return StoreConfig(cache_dir=str(tmp_path / "cache"), timeout_s=2.0, attempts=2)


@pytest.fixture
def events():
    """Programs started and connections made while the test runs, as the interpreter itself reports them."""
    seen, active = [], True

    def hear(event, arguments):
        if active and event in (
            "subprocess.Popen",
            "os.system",
            "os.exec",
            "os.posix_spawn",
            "socket.connect",
        ):
            seen.append((event, arguments))

    sys.addaudithook(hear)
    yield seen
    active = False


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("pipe:touch MARKER", "type a folder, or an address that begins with"),
        ("pipe://touch MARKER", "type a folder, or an address"),
        ("ssh://host/shards", "type a folder, or an address"),
        ("sftp://host/shards", "type a folder, or an address"),
        ("file:///etc/passwd", "type a folder, or an address"),
        ("file:/etc/passwd", "type a folder, or an address"),
        ("hdfs://name/shards", "type a folder, or an address"),
        ("ftp://host/shards", "type a folder, or an address"),
        ("gopher://host/x", "type a folder, or an address"),
        ("data:text/plain,x", "type a folder, or an address"),
        ("http://169.254.169.254/latest/meta-data", "link-local or metadata"),
        ("http://0xA9FEA9FE/latest", "link-local or metadata"),
        ("http://2852039166/latest", "link-local or metadata"),
        ("http://[fe80::1]/x", "link-local or metadata"),
        ("http://[::ffff:169.254.169.254]/x", "link-local or metadata"),
        ("http://[64:ff9b::a9fe:a9fe]/x", "link-local or metadata"),
        ("http://[fd00:ec2::254]/x", "link-local or metadata"),
        ("http://100.100.100.200/x", "link-local or metadata"),
        ("http://0.0.0.0:80/x", "link-local or metadata"),
        ("http://me:hunter2@host/x", "credentials in an address end up in logs: type http://host/x"),
        ("s3://key:hunter2@bucket/x", "credentials in an address"),
        ("s3://bucket/../other", "an empty, . or .. part"),
        ("https://host/a/../../b", "an empty, . or .. part"),
        ("https://host/a//b", "an empty, . or .. part"),
        ("s3://", "type s3://BUCKET/PATH"),
        ("s3:///shards", "type s3://BUCKET/PATH"),
        ("s3://host:9000/shards", "type s3://BUCKET/PATH"),
        ("gs://b u/x", "the plain address of a folder"),
        ("https://host/x?token=1", "the plain address of a folder"),
        ("https://host/my shards", "a blank is written %20 there; type https://host/my%20shards"),
        ("https://host/x#y", "the plain address of a folder"),
        ("http://host:port/x", "cannot read shards"),
        ("http:///x", "names no host"),
    ],
)
def test_an_address_that_is_not_allowed_is_refused_with_no_program_and_no_connection(
    root, message, config, events, tmp_path
):
    children = psutil.Process().children(recursive=True)  # those of other tests
    with pytest.raises(ConfigError, match=r"^[^\n]+$") as error:
        open_store(root.replace("MARKER", str(tmp_path / "marker")), config)
    assert message in str(error.value)
    assert "hunter2" not in str(error.value)
    assert events == []
    assert psutil.Process().children(recursive=True) == children
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("root", ["s3://b-1", "s3://b-1/a/b/", "gs://b_1/a", "https://h:81/a", "HTTP://h/a"])
def test_addresses_of_the_list_are_allowed(root):
    assert is_address(root)
    assert parse_address(root).scheme == root.partition(":")[0].lower()


@pytest.mark.parametrize("root", ["/data/shards", "shards", "C:/shards", "a:b"])
def test_folders_are_no_addresses(root):
    assert not is_address(root)
    with pytest.raises(ShardError, match="no such folder"):
        open_store(root)


def test_a_name_that_resolves_to_a_link_local_address_is_refused(config, monkeypatch):
    answer = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("169.254.169.254", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answer)
    with pytest.raises(ConfigError, match=r"http://innocent\.example leads to 169\.254\.169\.254"):
        open_store("http://innocent.example/shards", config)


class Elsewhere(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(302)
        self.send_header("Location", self.server.target)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def redirecting():
    """The address of a server that sends everybody on to `target`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    "target",
    [
        "http://169.254.169.254/latest/meta-data",
        "http://[fe80::1]/x",
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
    ],
)
def test_a_redirect_to_what_is_not_allowed_is_not_followed(redirecting, target, config, events):
    redirecting.target = target
    store = open_store(f"http://127.0.0.1:{redirecting.server_port}/shards", config)
    for use in (lambda: store.read("a.tar", 0, 10), lambda: store.size("a.tar")):
        with pytest.raises(PipelineError, match=r"^[^\n]+$") as error:
            use()
        assert error.value.exit_code in (2, 3)
    assert {arguments[1][1] for event, arguments in events if event == "socket.connect"} <= {
        redirecting.server_port
    }
    store.close()


def test_a_name_that_changes_its_address_after_the_check_gets_no_request(config, monkeypatch):
    """DNS rebinding: what counts is whom the connection has reached."""
    store = open_store("http://localhost:1/shards", config)
    ours, theirs = socket.socketpair()

    class Reached(socket.socket):
        def getpeername(self):
            return ("169.254.169.254", 80)

    def reach(connection):
        connection.sock = Reached(fileno=ours.detach())

    monkeypatch.setattr(http.client.HTTPConnection, "connect", reach)
    monkeypatch.setattr("urllib3.connection.HTTPConnection.connect", reach)
    with pytest.raises(ConfigError, match=r"leads to 169\.254\.169\.254"):
        store.read("a.tar", 0, 10)
    assert theirs.recv(1) == b"", "nothing was sent, and the connection is closed"
    theirs.close()
    store.close()


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/../b", "a//b", "", ".", "~/x", "a b", "a?b", "a%2e%2e/b"]
)
def test_names_that_could_leave_the_address_are_refused(name, config):
    store = open_store("http://localhost:1/shards", config)
    for use in (lambda: store.read(name, 0, 1), lambda: store.size(name), lambda: store.read_all(name)):
        with pytest.raises(ShardError, match="refused"):
            use()
    store.close()


def test_gs_without_its_client_says_what_to_install(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "google.cloud", None)
    with pytest.raises(ConfigError, match=r"^gs:// .* pip install 'smart_open\[gcs\]'"):
        open_store("gs://bucket/shards", config)


@pytest.mark.parametrize(
    "endpoint", ["http://169.254.169.254", "http://[fd00:ec2::254]:80", "http://2852039166/"]
)
def test_an_endpoint_is_refused_as_a_typed_address_is(config, events, monkeypatch, endpoint):
    for name, value in s3_environment(endpoint).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"AWS_ENDPOINT_URL=http://.* \(link-local or metadata\)"):
        open_store("s3://bucket/set", config)
    assert events == []
