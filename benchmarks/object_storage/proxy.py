"""A proxy between a client and an S3 server that does to requests what networks and loaded servers do to them.

It passes on what it is given, `Host` and signature included, so a server takes its requests for the client's own. What
befalls a request is chosen by a function of the caller; every fault is counted by name.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

LATE_SECONDS = 0.5
SLOW_SECONDS = 0.3
_XML = b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>%s</Code><Message>proxy</Message></Error>'
_DROPPED = {"connection", "keep-alive", "transfer-encoding", "content-length"}


class Fault(Enum):
    """What befalls a request; `landed` ones reach the server whole, and their outcome is not told."""

    NONE = "passed on"
    SLOW_DOWN = "503 SlowDown"
    ERROR = "500"
    REFUSED = "connection closed before the request was passed on"
    LANDED_LOST = "landed, response lost"
    LANDED_ERROR = "landed, then 500"
    LANDED_LATE = "answered 500, and lands half a second later"
    CUT_UPLOAD = "half of the request's body"
    CUT_RESPONSE = "half of the response's body"
    SLOW = "0.3 s late"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a chooser sees of a request."""

    method: str
    path: str
    is_conditional: bool  # `If-None-Match`, which only a write has here
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Response:
    status: int
    headers: list[tuple[str, str]]
    body: bytes
    length: str  # as the server said it, which of an answer to HEAD is not that of the body


class Proxy:
    """A proxy on a free port of this machine until the end of its `with` block.

    Args:
        server: host and port to pass requests on to.
        choose: what befalls a request; called on many threads.
    """

    def __init__(self, server: tuple[str, int], choose: Callable[[Request], Fault]) -> None:
        self.server = server
        self.choose = choose
        self.faults: Counter[Fault] = Counter()
        self._http = _Server(("127.0.0.1", 0), _Handler)
        self._http.proxy = self
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._http.server_close()


class _Server(ThreadingHTTPServer):
    proxy: Proxy
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no news here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are sent apart: the body would wait for the head to be acknowledged
    server: _Server

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = Request(
            method=self.command, path=self.path, is_conditional="If-None-Match" in self.headers, body=body
        )
        proxy = self.server.proxy
        fault = proxy.choose(request)
        proxy.faults[fault] += 1
        try:
            self._meet(fault, request)
        except (OSError, HTTPException):
            self.close_connection = True

    def _meet(self, fault: Fault, request: Request) -> None:
        if fault is Fault.SLOW:
            time.sleep(SLOW_SECONDS)
        if fault is Fault.SLOW_DOWN:
            self._refuse(503, b"SlowDown")
        elif fault is Fault.ERROR:
            self._refuse(500, b"InternalError")
        elif fault is Fault.LANDED_LATE:
            threading.Timer(LATE_SECONDS, self._quietly, [request]).start()
            self._refuse(500, b"InternalError")
        elif fault is Fault.REFUSED:
            self.close_connection = True
        elif fault is Fault.CUT_UPLOAD:
            self._cut_upload(request)
            self.close_connection = True
        else:
            self._answer(fault, self._pass_on(request))

    def _answer(self, fault: Fault, response: _Response) -> None:
        if fault is Fault.LANDED_ERROR:
            self._refuse(500, b"InternalError")
        elif fault is Fault.LANDED_LOST:
            self.close_connection = True
        else:
            is_cut = fault is Fault.CUT_RESPONSE and len(response.body) > 1
            self._send(response, response.body[: len(response.body) // 2] if is_cut else response.body)
            self.close_connection = self.close_connection or is_cut

    def _pass_on(self, request: Request) -> _Response:
        """Hand a request to the server as it is, and take the whole answer."""
        connection = HTTPConnection(*self.server.proxy.server, timeout=60)
        try:
            self._put_head(connection, request)
            connection.send(request.body)
            answer = connection.getresponse()
            body = answer.read()
            headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in _DROPPED]
            length = answer.getheader("Content-Length") or str(len(body))
            return _Response(status=answer.status, headers=headers, body=body, length=length)
        finally:
            connection.close()

    def _cut_upload(self, request: Request) -> None:
        connection = HTTPConnection(*self.server.proxy.server, timeout=60)
        try:
            self._put_head(connection, request)
            connection.send(request.body[: len(request.body) // 2])
        finally:
            connection.close()

    def _quietly(self, request: Request) -> None:
        try:
            self._pass_on(request)
        except (OSError, HTTPException):
            return  # nobody waits for it

    def _put_head(self, connection: HTTPConnection, request: Request) -> None:
        connection.putrequest(request.method, request.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("connection", "content-length"):
                connection.putheader(name, value)
        connection.putheader("Content-Length", str(len(request.body)))
        connection.putheader("Connection", "close")
        connection.endheaders()

    def _refuse(self, status: int, code: bytes) -> None:
        body = b"" if self.command == "HEAD" else _XML % code
        headers = [("Content-Type", "application/xml")]
        self._send(_Response(status=status, headers=headers, body=body, length=str(len(body))), body)

    def _send(self, response: _Response, body: bytes) -> None:
        """Send an answer with as much of its body; its length is announced whole."""
        self.send_response_only(response.status)
        for name, value in response.headers:
            self.send_header(name, value)
        if response.status not in (204, 304):
            self.send_header("Content-Length", response.length)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()
