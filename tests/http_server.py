"""An HTTP server that misbehaves on request, and remembers what it was asked."""

import random
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CONTENT = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(300_000)


@dataclass(frozen=True)
class Act:
    """How the server answers one request."""

    status: int = 200
    body: bytes = CONTENT
    location: str | None = None
    encoding: str | None = None
    framing: str = "length"  # how the body's end is told: "length", "chunked" or "close"
    ranges: bool = True  # whether it understands Range
    shift: int = 0  # begin that much later than asked for
    drop: int | None = None  # hang up after that many bytes
    hold: int | None = None  # after that many bytes, wait for `Server.go`
    drip: int | None = None  # send that many bytes at a time


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_CONNECT(self):
        self.server.requests.append((self.path, 0))
        self.send_error(403)

    def do_GET(self):
        start = int(self.headers.get("Range", "bytes=0-")[len("bytes=") : -1])
        with self.server.lock:
            self.server.requests.append((self.path, start))
            act = self.server.acts.pop(0) if len(self.server.acts) > 1 else self.server.acts[0]
        ranged = act.ranges and start > 0 and act.status == 200
        if ranged and start >= len(act.body):
            self.send_error(416)
            return
        self.send_response(206 if ranged else act.status)
        body = act.body
        if ranged:
            first = start + act.shift
            self.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
            body = body[first:]
        if act.location:
            self.send_header("Location", act.location)
        if act.encoding:
            self.send_header("Content-Encoding", act.encoding)
        if act.framing == "length":
            self.send_header("Content-Length", str(len(body)))
        elif act.framing == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
        self.send_header("Connection", "close")
        self.end_headers()
        self.send_body(act, body)

    def send_body(self, act, body):
        if act.framing == "chunked":
            self.wfile.write(f"{len(body):x}\r\n".encode())
        end = len(body) if act.drop is None else act.drop
        step = act.drip or act.hold or len(body) or 1
        for i in range(0, end, step):
            if i and act.drip:
                time.sleep(0.02)
            if i == act.hold:
                self.server.go.wait(30)
            self.wfile.write(body[i : min(i + step, end)])
        if act.framing == "chunked" and end == len(body):
            self.wfile.write(b"\r\n0\r\n\r\n")

    def log_message(self, *args):
        pass


class Server(ThreadingHTTPServer):
    """Answers each request by the next of `acts`, the last one for ever; `requests` are (path, first byte)."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.acts, self.requests = [Act()], []
        self.lock, self.go = threading.Lock(), threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"

    @property
    def starts(self):
        return [start for _, start in self.requests]

    def handle_error(self, request, client_address):
        """The client has hung up: as it may."""
