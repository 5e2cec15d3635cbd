"""An HTTP proxy that fails on purpose, by a schedule: what a network does, made to happen.

Of every hundred requests exactly five are answered by an error, one is cut by a reset in the middle of
its body, and one falls silent there. Which ones is drawn from the seed.
"""

from __future__ import annotations

import http.client
import random
import select
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

Fault = Literal["", "error", "reset", "stall"]
SHARES: dict[Fault, int] = {"error": 5, "reset": 1, "stall": 1}
"""Faults to a hundred requests."""


@dataclass(frozen=True)
class Seen:
    """A request that came by."""

    method: str
    path: str
    range: str
    fault: Fault


class FaultyProxy:
    """Forwards to `upstream` (host:port), each answer after `latency_s`; `faults` turns the schedule on.

    A client that waits through a silence for `stall_s` is hung up on.
    """

    def __init__(
        self, upstream: str, *, faults: bool, latency_s: float = 0.0, seed: int = 0, stall_s: float = 30.0
    ) -> None:
        self.upstream = upstream
        self.latency_s, self.stall_s = latency_s, stall_s
        self.seen: list[Seen] = []
        self.down = False
        """While true, every request is answered by 503."""
        self._faults = faults
        self._seed = seed
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def next_fault(self, method: str, path: str, asked: str) -> Fault:
        """What happens to a request, which is counted."""
        with self._lock:
            number = len(self.seen)
            fault: Fault = "error" if self.down else self._scheduled(number)
            self.seen.append(Seen(method, path, asked, fault))
            return fault

    def faults(self) -> Counter[Fault]:
        """How often each fault has happened."""
        with self._lock:
            return Counter(seen.fault for seen in self.seen if seen.fault)

    def gets(self, suffix: str = "") -> list[Seen]:
        """GETs of paths with this ending."""
        with self._lock:
            return [s for s in self.seen if s.method == "GET" and s.path.partition("?")[0].endswith(suffix)]

    def _scheduled(self, number: int) -> Fault:
        if not self._faults:
            return ""
        block, place = divmod(number, 100)
        order: list[Fault] = [fault for fault, share in SHARES.items() for _ in range(share)]
        order += [""] * (100 - len(order))
        random.Random(self._seed * 1_000_003 + block).shuffle(order)
        return order[place]

    @contextmanager
    def running(self) -> Iterator[FaultyProxy]:
        """The proxy, serving until the context ends."""
        thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    proxy: FaultyProxy

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing: a client that hangs up early is why this exists."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    upstream: http.client.HTTPConnection | None = None

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def finish(self) -> None:
        with suppress(OSError):
            super().finish()
        if self.upstream is not None:
            self.upstream.close()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the requests are in `seen`."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_DELETE(self) -> None:
        self._answer()

    def _answer(self) -> None:
        proxy = self.server.proxy
        fault = proxy.next_fault(self.command, self.path, self.headers.get("Range", ""))
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if proxy.latency_s:
            time.sleep(proxy.latency_s)
        if fault == "error":
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        status, headers, body = self._forward(sent)
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("connection", "transfer-encoding"):
                self.send_header(name, value)
        self.end_headers()
        if not fault:
            self.wfile.write(body)
            return
        with suppress(OSError):
            self.wfile.write(body[: len(body) // 2])
        self.close_connection = True
        if fault == "stall":
            select.select([self.connection], [], [], proxy.stall_s)  # readable when the client has hung up
        else:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def _forward(self, sent: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        if self.upstream is None:
            self.upstream = http.client.HTTPConnection(self.server.proxy.upstream)
        self.upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            self.upstream.putheader(name, value)
        self.upstream.endheaders(sent)
        answer = self.upstream.getresponse()
        return answer.status, answer.getheaders(), answer.read()
