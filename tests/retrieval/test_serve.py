"""The page and the JSON interface, over real sockets."""

from __future__ import annotations

import io
import json
import re
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from sdr_lightning import Index, Retriever
from sdr_lightning.cli.main import main
from sdr_lightning.retrieval.serve import Limits, SearchServer
from tests.retrieval.conftest import COLOURS

HOSTILE = '<img src=x onerror="alert(1)">&amp;.png'


@pytest.fixture(scope="module")
def index(model: Retriever, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Index:
    """An index of pictures, one of which has HTML for a name."""
    root = tmp_path_factory.mktemp("hostile")
    shutil.copytree(folder, root / "photos")
    Image.new("RGB", (900, 300), (250, 120, 0)).save(root / "photos" / HOSTILE)
    return Index.build(model, root / "hostile.index", images=root / "photos")


def running(server: SearchServer) -> Iterator[SearchServer]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def server(index: Index) -> Iterator[SearchServer]:
    yield from running(SearchServer(index, port=0, limits=Limits(upload_bytes=200_000, pixels=10**6)))


@pytest.fixture
def hasty(scenes: Index) -> Iterator[SearchServer]:
    """A server without patience, of images and captions of a generated collection."""
    yield from running(SearchServer(scenes, port=0, limits=Limits(seconds=0.4, connections=3)))


def ask(
    server: SearchServer, path: str, body: bytes | None = None, method: str | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = HTTPConnection("127.0.0.1", server.server_address[1], timeout=60)
    connection.request(method or ("GET" if body is None else "POST"), path, body, headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), content


def ask_json(server: SearchServer, path: str, body: bytes | None = None) -> Any:
    status, headers, content = ask(server, path, body)
    assert headers["Content-Type"].startswith("application/json")
    return json.loads(content) | {"status": status}


def raw(server: SearchServer, request: bytes) -> bytes:
    """Send bytes as they are and return the answer."""
    with socket.create_connection(server.server_address[:2], timeout=60) as connection:
        connection.sendall(request)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def png(width: int, height: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(content, "PNG")
    return content.getvalue()


def bomb() -> bytes:
    """A small PNG that claims 40,000 x 40,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + bytes(99)


@pytest.mark.parametrize(
    "path", ["/", "/page.css", "/page.js", "/api/info", "/api/search?q=a", "/image/p0.png", "/none"]
)
def test_every_answer_forbids_outside_content(server: SearchServer, path: str) -> None:
    status, headers, content = ask(server, path)
    assert status == (404 if path == "/none" else 200)
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert int(headers["Content-Length"]) == len(content)
    assert ask(server, path, method="HEAD")[2] == b""


def test_answers_are_those_of_the_index(server: SearchServer, index: Index) -> None:
    info = ask_json(server, "/api/info")
    assert (info["images"], info["captions"], info["can_rerank"]) == (len(COLOURS) + 1, 0, True)
    for path, hits in (
        ("q=a%20red%20cube&k=3", index.search("a red cube", k=3)),
        ("q=%E7%8B%97&k=200&in=images", index.search("狗", k=200)),
        ("like=p0.png&k=2", index.search(like="p0.png", k=2)),
        ("q=a&k=3&rerank=2", index.search("a", k=3, rerank=2)),
    ):
        found = ask_json(server, f"/api/search?{path}")
        expected = [(hit.id, pytest.approx(hit.score), hit.captions) for hit in hits]
        assert [(hit["id"], hit["score"], hit["captions"]) for hit in found["hits"]] == expected
        assert "path" not in found["hits"][0]
    picture = np.asarray(Image.open(io.BytesIO(png(30, 20))))
    found = ask_json(server, "/api/search?k=4", png(30, 20))
    assert [hit["id"] for hit in found["hits"]] == [hit.id for hit in index.search(image=picture, k=4)]


def test_pictures_are_small_jpegs(server: SearchServer) -> None:
    hits = ask_json(server, "/api/search?q=a&k=100")["hits"]
    hostile = next(hit for hit in hits if hit["id"] == HOSTILE)
    assert hostile["picture"] == f"/image/{quote(HOSTILE, safe='')}"
    status, headers, content = ask(server, hostile["picture"])
    assert (status, headers["Content-Type"]) == (200, "image/jpeg")
    assert Image.open(io.BytesIO(content)).size == (640, 213)


@pytest.mark.parametrize(
    ("path", "status", "complaint"),
    [
        ("/api/search", 400, "expected q, the words, or like"),
        ("/api/search?q=%20", 400, "the query is empty"),
        ("/api/search?q=a&like=p0.png", 400, "expected q, the words, or like"),
        ("/api/search?q=a&in=captions", 400, "this index has no captions"),
        ("/api/search?q=a&in=nothing", 400, "search is in images, captions, both"),
        ("/api/search?q=a&k=0", 400, "expected k of at least 1"),
        ("/api/search?q=a&k=-1", 400, "k is '-1', expected a number of at most 200"),
        ("/api/search?q=a&k=201", 400, "k is '201'"),
        ("/api/search?q=a&rerank=%D9%A3", 400, "rerank is"),
        ("/api/search?like=p0.png&in=images&rerank=5", 400, "re-ranking scores a caption with an image"),
        ("/api/search?like=none", 400, "no image 'none'"),
        ("/api/search?" + "&".join(f"a{n}=1" for n in range(50)), 400, "Max number of fields"),
        ("/image/none.png", 404, "no image 'none.png'"),
        ("/image/../../../../etc/passwd", 404, "no image"),
        ("/image/..%2F..%2Fphotos%2Fp0.png", 404, "no image"),
        ("/image/%2Fetc%2Fpasswd", 404, "no image"),
        ("/image/p0.png%00", 404, "no image"),
        ("/image/notes.txt", 404, "no image"),
        ("/../pyproject.toml", 404, "nothing is here"),
        ("/page/page.html", 404, "nothing is here"),
        ("//etc/passwd", 404, "nothing is here"),
    ],
)
def test_unusable_requests_give_one_line(server: SearchServer, path: str, status: int, complaint: str) -> None:
    answer = ask_json(server, path)
    assert (answer["status"], complaint in answer["error"]) == (status, True), answer


def test_a_picture_that_has_gone_is_not_found(server: SearchServer, index: Index) -> None:
    row = index.image_row("p2.png")
    file = Path(index.galleries["images"].items[row]["path"])
    content = file.read_bytes()
    file.write_text("<script>alert(1)</script>")
    assert ask_json(server, "/image/p2.png")["status"] == 404
    answer = ask_json(server, "/api/search?q=a&k=20&rerank=20")
    assert "that of 'p2.png' cannot be read" in answer["error"]
    assert str(file.parent) not in answer["error"]
    file.write_bytes(content)
    assert ask(server, "/image/p2.png")[0] == 200


@pytest.mark.parametrize(
    ("body", "status", "complaint"),
    [
        (b"", 400, "the picture cannot be read"),
        (b"<svg onload='alert(1)'/>", 400, "it is none, or of another format"),
        (png(30, 20)[:60], 400, "the picture cannot be read"),
        (bomb(), 400, "the picture cannot be read"),
        (png(2000, 600), 400, "it has 2000 x 600 pixels, more than 1 million"),
        (bytes(300_000), 413, "the picture has 0.3 MB, more than 0.2 MB"),
    ],
)
def test_unusable_pictures_are_refused(server: SearchServer, body: bytes, status: int, complaint: str) -> None:
    answer = ask_json(server, "/api/search", body)
    assert (answer["status"], complaint in answer["error"]) == (status, True), answer
    assert ask(server, "/api/search?k=1", png(30, 20))[0] == 200  # the server goes on


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        (b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n", 411),
        (b"POST /image/p0.png HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nx", 404),
        (b"DELETE /image/p0.png HTTP/1.1\r\nHost: localhost\r\n\r\n", 501),
        (b"GET / HTTP/1.1\r\n\r\n", 421),
        (b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421),
        (b"GET / HTTP/1.1\r\nHost: localhost.evil.example:80\r\n\r\n", 421),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1@evil.example\r\n\r\n", 421),
        (b"GET / HTTP/1.1\r\nHost: [::\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: LOCALHOST:9\r\n\r\n", 200),
        (b"GET / HTTP/1.1\r\nHost: [::1]:9\r\n\r\n", 200),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\n\r\n", 403),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nOrigin: null\r\n\r\n", 403),
        (b"GET / HTTP/1.1\r\nHost: localhost:9\r\nOrigin: http://localhost:9\r\n\r\n", 200),
        (b"nonsense\r\n\r\n", 400),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431),
    ],
)
def test_requests_of_other_sites_and_malformed_ones_are_refused(
    server: SearchServer, request_: bytes, status: int
) -> None:
    answer = raw(server, request_)
    assert re.search(rb"HTTP/1.0 (\d+)", answer) or status == 400  # the oldest protocol has no status line
    assert answer.startswith(b"HTTP/1.0 %d " % status) or (b"nonsense" in request_ and b"error" in answer)


def _sends(connection: socket.socket, content: bytes) -> bool:
    try:
        connection.sendall(content)
    except OSError:
        return False
    return True


def test_slow_and_too_many_clients_are_closed(hasty: SearchServer) -> None:
    start = time.monotonic()
    with socket.create_connection(hasty.server_address[:2], timeout=60) as drip:
        while time.monotonic() - start < 20 and _sends(drip, b"G"):
            time.sleep(0.05)
    assert time.monotonic() - start < 8  # closed, although it keeps sending
    body = b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nhalf"
    assert raw(hasty, body) == b""
    silent = [socket.create_connection(hasty.server_address[:2], timeout=60) for _ in range(8)]
    assert all(client.recv(1) == b"" for client in silent)  # the first three after the limit of time
    for client in silent:
        client.close()
    assert ask(hasty, "/api/info")[0] == 200


def test_images_and_captions_that_are_no_files_have_pictures(hasty: SearchServer, scenes: Index) -> None:
    hits = ask_json(hasty, "/api/search?q=a%20cube&in=both&k=30")["hits"]
    assert {hit["kind"] for hit in hits} == {"image", "caption"}
    for hit in hits[:2]:
        assert ask(hasty, hit["picture"])[0] == 200
    name = scenes.galleries["images"].items[3]["id"]
    found = ask_json(hasty, f"/api/search?like={quote(name, safe='')}&in=captions&k=3&rerank=3")
    assert found["hits"][0]["match"] >= found["hits"][1]["match"]


def test_a_hundred_clients_are_served_at_once(server: SearchServer) -> None:
    paths = ["/api/search?q=a%20red%20cube&k=3", "/image/p0.png", "/", "/api/info"]
    with ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(lambda n: ask(server, paths[n % 4]), range(100)))
    assert [status for status, *_ in answers] == [200] * 100
    assert len({re.sub(rb'"seconds.*', b"", content) for _, _, content in answers}) == 4


def test_the_page_has_no_outside_resources_and_never_parses_html() -> None:
    folder = files("sdr_lightning.retrieval.serve").joinpath("page")
    page = {name: folder.joinpath(name).read_text() for name in ("page.html", "page.js", "page.css")}
    assert not any("://" in text for text in page.values())
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|DOMParser|srcdoc", page["page.js"]
    )
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script>", page["page.html"])
    wanted = set(re.findall(r'element\("([\w-]+)"\)', page["page.js"]))
    assert wanted <= set(re.findall(r'id="([\w-]+)"', page["page.html"]))


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_script_of_the_page_is_valid() -> None:
    script = files("sdr_lightning.retrieval.serve").joinpath("page/page.js").read_text()
    subprocess.run(["node", "--check", "-"], input=script, text=True, check=True, capture_output=True)


def test_from_the_command_line(index: Index, server: SearchServer, monkeypatch: Any, capsys: Any) -> None:
    def interrupted(self: SearchServer) -> None:
        assert self.server_address[0] == "127.0.0.1"
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(SearchServer, "serve_forever", interrupted)
    assert main(["serve", str(index.folder), "--port", "0"]) == 0
    assert re.search(r"is served at http://127\.0\.0\.1:\d+ \(Ctrl-C stops it\)", capsys.readouterr().out)
    port = str(server.server_address[1])
    assert main(["serve", str(index.folder), "--port", port]) == 2
    assert f"port {port} is in use: choose another with --port" in capsys.readouterr().err
    assert main(["serve", str(index.folder), "--host", "203.0.113.1"]) == 2
    assert "cannot listen on 203.0.113.1" in capsys.readouterr().err
    assert main(["serve", "none"]) == 2
    assert "no index at none" in capsys.readouterr().err
