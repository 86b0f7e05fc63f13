"""``sdr push`` and ``load("USER/NAME")`` with the hub's own client, against a hub on this machine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants

from sdr_lightning import Retriever, load
from sdr_lightning.cli.main import main
from sdr_lightning.retrieval.export import export
from tests.retrieval.hub import TOKEN, FakeHub

TEXTS = ["a red cube", "a small blue circle"]
ROUND_TRIP = """
import json, sys
from huggingface_hub import constants
from sdr_lightning import load
from sdr_lightning.cli.main import main
assert main(["push", sys.argv[1], "me/mine", "--private"]) == 0
print(json.dumps(load("me/mine").encode_texts(json.loads(sys.argv[2])).tolist()))
constants.HF_HUB_OFFLINE = True  # what the environment variable sets
print(load("me/mine").fingerprint())
constants.HF_HUB_OFFLINE = False
try:
    load("me/else")
except ValueError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def exported(model: Retriever, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "mine"
    export(model, folder, "---\nlibrary_name: sdr_lightning\n---\n# mine\n")
    return folder


@pytest.fixture
def hub() -> Iterator[Callable[..., FakeHub]]:
    started = []

    def start(*lfs: str) -> FakeHub:
        server = FakeHub(lfs)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        started.append((server, thread))
        return server

    yield start
    for server, thread in started:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.slow
@pytest.mark.parametrize("lfs", [(), (".safetensors",)], ids=["regular files", "weights by Git LFS"])
def test_a_pushed_model_is_loaded_by_its_name(
    model: Retriever, exported: Path, hub: Callable[..., FakeHub], lfs: tuple[str, ...], tmp_path: Path
) -> None:
    there = hub(*lfs)
    there.repositories["me/else"] = {"config.json": b"{}", "pytorch_model.bin": b"pickle"}
    environment = {"HF_ENDPOINT": there.url, "HF_HOME": str(tmp_path), "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0"}
    environment |= {"HF_HUB_DISABLE_XET": "1"} if lfs else {}
    command = [sys.executable, "-c", ROUND_TRIP, str(exported), json.dumps(TEXTS)]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=840)
    assert done.returncode == 0, done.stderr
    address, embeddings, offline, refused = done.stdout.splitlines()
    assert address == f"{there.url}/me/mine/commit/{there.commit('me/mine')}"
    assert offline == model.fingerprint()
    assert refused == "me/else on the hub was not written by sdr export: it has no sdr_model.json"
    assert not any("pytorch_model.bin" in request for request in there.requests)
    assert there.private == {"me/mine"}
    files = {path.relative_to(exported).as_posix(): path.read_bytes() for path in exported.rglob("*") if path.is_file()}
    assert there.repositories["me/mine"] == files
    assert len(there.uploaded) == len(lfs)
    expected = load(exported, device="cpu").encode_texts(TEXTS)
    assert np.array(json.loads(embeddings)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("token", "name", "complaint"),
    [
        ("hf_wrong", "me/mine", "the hub did not take me/mine: "),
        (None, "me/mine", "the hub did not take me/mine: "),
        (TOKEN, "no such/name", "the hub did not take no such/name: "),
        ("closed", "me/mine", "the hub did not take me/mine: "),
    ],
)
def test_a_push_that_fails_gives_one_line(
    exported: Path,
    hub: Callable[..., FakeHub],
    token: str | None,
    name: str,
    complaint: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    there = hub()
    endpoint = there.url
    if token == "closed":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    assert main(["push", str(exported), name]) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert token != "hf_wrong" or "401" in error
    assert "Traceback" not in error
    assert not there.repositories
