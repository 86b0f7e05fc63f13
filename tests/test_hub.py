"""Whether the hub is found to be missing at once."""

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from socketserver import BaseRequestHandler, TCPServer

import pytest
from huggingface_hub import constants

from sdr_lightning.hub import check_available, why_unavailable


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    return endpoint


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    class Refuses(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(403)

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield
        server.shutdown()


def test_a_hub_that_does_not_answer_is_named(closed: str) -> None:
    with pytest.raises(ConnectionError, match=f"{closed} cannot be reached"):
        check_available("timm/resnet18.a1_in1k")


def test_a_server_that_speaks_no_http_is_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    class Greets(BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(b"220 hello\r\n")

    with TCPServer(("127.0.0.1", 0), Greets) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
        assert str(why_unavailable()).endswith("cannot be reached")
        server.shutdown()


def test_offline_mode_is_respected(answering: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_unavailable() is None
    check_available("bert-base-uncased")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert why_unavailable() == "HF_HUB_OFFLINE is set"


def test_folders_and_downloads_need_no_hub(closed: str, tmp_path: Path) -> None:
    check_available(str(tmp_path))
    for folder in ("models--bert-base-uncased", "models--timm--resnet18.a1_in1k", "datasets--someone--flickr"):
        (tmp_path / folder).mkdir()
    check_available("bert-base-uncased")
    check_available("timm/resnet18")
    check_available("someone/flickr", "dataset")
    with pytest.raises(ConnectionError):
        check_available("someone/flickr")
