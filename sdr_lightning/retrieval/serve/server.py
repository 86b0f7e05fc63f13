"""The HTTP server of ``sdr serve``.

It reads nothing from disk but the files that the index names: ids in a request are looked up as rows. Pictures are decoded and
encoded again, so no other content leaves the server. It is meant for one machine or a trusted network: there is no login, and
no encryption.
"""

from __future__ import annotations

import io
import ipaddress
import json
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from socketserver import TCPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlsplit

from sdr_lightning.retrieval.index import KINDS, Hit, Index
from sdr_lightning.retrieval.serve.pictures import thumbnail, uploaded

_PAGE = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_JSON = "application/json; charset=utf-8"
_DISCARDED = 2**26  # bytes of a refused upload that are read, so that the client sees the answer


@dataclass(frozen=True)
class Limits:
    """Limits on what clients may ask for.

    Attributes:
        results: greatest k and rerank.
        upload_bytes: size of a picture.
        pixels: width times height of a picture.
        seconds: time for a client to send its request, and to receive the answer.
        uploads: pictures received at the same time; others wait.
        connections: connections at the same time; others are closed.
        side: greatest width and height of the pictures sent, in pixels.
    """

    results: int = 200
    upload_bytes: int = 20 * 10**6
    pixels: int = 50 * 10**6
    seconds: float = 30
    uploads: int = 8
    connections: int = 256
    side: int = 640


class Reply(NamedTuple):
    """Answer to a request.

    Attributes:
        content: the body.
        kind: its type.
        status: HTTP status.
        cache: ``Cache-Control``.
    """

    content: bytes
    kind: str = _JSON
    status: HTTPStatus = HTTPStatus.OK
    cache: str = "no-store"


class _RefusedError(Exception):
    """A request that is answered by an error."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class SearchServer(ThreadingHTTPServer):
    """Serve an index.

    Args:
        index: the index.
        host: address to listen on; loopback unless the network is trusted.
        port: port; 0 for any free one.
        limits: limits for clients.

    Raises:
        OSError: the port is in use, or the address is not of this machine.

    Attributes:
        url: address of the page.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, index: Index, host: str = "127.0.0.1", port: int = 8080, limits: Limits | None = None) -> None:
        self.index, self.host, self.limits = index, host, limits or Limits()
        self.can_rerank = index.model.has_matching_head  # loads the model before the first query
        self.page = {
            route: Reply(files(__package__).joinpath("page", name).read_bytes(), kind)
            for route, (name, kind) in _PAGE.items()
        }
        self.model_lock = threading.Lock()  # one query, and one decoded upload in memory, at a time
        self.uploads = threading.BoundedSemaphore(self.limits.uploads)
        self._decoding = threading.BoundedSemaphore(2)
        self._connections = threading.BoundedSemaphore(self.limits.connections)
        self.picture = lru_cache(maxsize=512)(self._picture)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self.server_address[1]}"

    def server_bind(self) -> None:
        """Bind, without looking up the name of the host as the base class does."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.host, int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, or close the connection if there are too many."""
        if self._connections.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer a request."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print unexpected errors; clients that go away or are too slow are none."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            traceback.print_exc()

    def is_own_name(self, name: str) -> bool:
        """Whether a name in the ``Host`` header is this server's.

        A page of another site that has its own name point here (DNS rebinding) sends that name. An address cannot be forged so.
        """
        if name.lower() in ("localhost", self.host.lower()):
            return True
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return True

    def _picture(self, row: int) -> bytes:
        path = self.index.path(self.index.galleries["images"].items[row])
        if path is None:
            raise ValueError("this image is no file")
        with self._decoding:
            return thumbnail(Path(path), self.limits.side, self.limits.pixels)


class _Deadline(io.RawIOBase):
    """Read from a socket until a point in time, however slowly the client sends."""

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        self._connection, self._end = connection, time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("the client is too slow")
        before = self._connection.gettimeout()
        self._connection.settimeout(left)
        try:
            return self._connection.recv_into(buffer)
        finally:
            self._connection.settimeout(before)


class _Handler(BaseHTTPRequestHandler):
    server: SearchServer
    server_version, sys_version = "sdr", ""

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(self.server.limits.seconds)  # for sending an answer
        self.rfile.close()
        self.rfile = io.BufferedReader(_Deadline(self.connection, self.server.limits.seconds))

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer a malformed request, which the base class found."""
        self._send(_error(HTTPStatus(code), message or HTTPStatus(code).phrase))

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_HEAD(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, route: Callable[[str, dict[str, str]], Reply]) -> None:
        try:
            self._check_origin()
            parts = urlsplit(self.path)
            fields = parse_qs(parts.query, keep_blank_values=True, max_num_fields=20)
            reply = route(parts.path, {name: values[-1] for name, values in fields.items()})
        except _RefusedError as error:
            reply = _error(error.status, str(error))
        except ValueError as error:  # what the index cannot be asked for
            reply = _error(HTTPStatus.BAD_REQUEST, str(error))
        except (ConnectionError, TimeoutError):
            raise
        except Exception:
            traceback.print_exc()
            reply = _error(HTTPStatus.INTERNAL_SERVER_ERROR, "the server failed, see its output")
        self._send(reply)

    def _check_origin(self) -> None:
        """Refuse requests that pages of other sites make."""
        host = self.headers.get("Host", "")
        origin = self.headers.get("Origin")
        if not self.server.is_own_name(urlsplit(f"//{host}").hostname or ""):
            raise _RefusedError(
                HTTPStatus.MISDIRECTED_REQUEST, "this server does not have the name in the request; use its address"
            )
        if origin is not None and urlsplit(origin).netloc != host:
            raise _RefusedError(HTTPStatus.FORBIDDEN, "requests from pages of other sites are not answered")

    def _get(self, path: str, fields: dict[str, str]) -> Reply:
        index = self.server.index
        if path in self.server.page:
            return self.server.page[path]
        if path == "/api/info":
            sizes: dict[str, Any] = {kind: len(index.galleries[kind]) for kind in KINDS}
            limits = {"results": self.server.limits.results, "upload_bytes": self.server.limits.upload_bytes}
            name = index.folder.resolve().name
            return _json({"name": name, **sizes, "can_rerank": self.server.can_rerank, "limits": limits})
        if path == "/api/search":
            if ("q" in fields) == ("like" in fields):
                raise ValueError("expected q, the words, or like, the id of an image")
            return self._search(fields, text=fields.get("q"), like=fields.get("like"))
        if path.startswith("/image/"):
            return self._image(unquote(path.removeprefix("/image/")))
        raise _RefusedError(HTTPStatus.NOT_FOUND, "nothing is here")

    def _post(self, path: str, fields: dict[str, str]) -> Reply:
        length, most = self.headers.get("Content-Length", ""), self.server.limits.upload_bytes
        if not (length.isascii() and length.isdigit()):
            raise _RefusedError(HTTPStatus.LENGTH_REQUIRED, "expected the picture as the body, with its Content-Length")
        if path != "/api/search" or int(length) > most:
            self._discard(int(length))
        if path != "/api/search":
            raise _RefusedError(HTTPStatus.NOT_FOUND, "nothing is here")
        if int(length) > most:
            message = f"the picture has {int(length) / 1e6:.1f} MB, more than {most / 1e6:g} MB"
            raise _RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)
        if not self.server.uploads.acquire(timeout=self.server.limits.seconds):
            raise _RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "too many pictures at the same time: try again")
        try:
            content = self.rfile.read(int(length))
            if len(content) < int(length):
                raise _RefusedError(HTTPStatus.BAD_REQUEST, "the picture was not sent whole")
            return self._search(fields, picture=content)
        finally:
            self.server.uploads.release()

    def _search(
        self, fields: dict[str, str], text: str | None = None, like: str | None = None, picture: bytes | None = None
    ) -> Reply:
        most = self.server.limits.results
        k, rerank = _number(fields, "k", 24, most), _number(fields, "rerank", 0, most)
        within: Any = fields.get("in", "images")
        with self.server.model_lock:
            start = time.perf_counter()
            image = None if picture is None else uploaded(picture, self.server.limits.pixels)
            hits = self.server.index.search(text, image=image, like=like, k=k, within=within, rerank=rerank)
            seconds = time.perf_counter() - start
        return _json({"hits": [_shown(hit) for hit in hits], "in": within, "seconds": round(seconds, 4)})

    def _image(self, name: str) -> Reply:
        try:
            content = self.server.picture(self.server.index.image_row(name))
        except ValueError as error:
            raise _RefusedError(HTTPStatus.NOT_FOUND, str(error)) from error
        return Reply(content, "image/jpeg", cache="private, max-age=600")

    def _discard(self, length: int) -> None:
        """Read and forget the body of a refused request: the answer would be lost if the connection closed before."""
        left = min(length, _DISCARDED)
        while left > 0 and (part := self.rfile.read(min(left, 2**16))):
            left -= len(part)

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", reply.kind)
        self.send_header("Content-Length", str(len(reply.content)))
        self.send_header("Cache-Control", reply.cache)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.content)


def _number(fields: dict[str, str], name: str, default: int, most: int) -> int:
    given = fields.get(name, str(default))
    if not (given.isascii() and given.isdigit() and len(given) < 9 and int(given) <= most):
        raise ValueError(f"{name} is {given[:20]!r}, expected a number of at most {most}")
    return int(given)


def _shown(hit: Hit) -> dict[str, Any]:
    """A result without the path of its file."""
    shown = hit._asdict()
    del shown["path"]
    return shown | {"picture": None if hit.path is None else f"/image/{quote(hit.image, safe='')}"}


def _json(value: dict[str, Any], status: HTTPStatus = HTTPStatus.OK) -> Reply:
    return Reply(json.dumps(value, ensure_ascii=False).encode(), status=status)


def _error(status: HTTPStatus, message: str) -> Reply:
    return _json({"error": message}, status)
