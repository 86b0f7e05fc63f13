"""A hub on this machine: what the hub's own client asks for to upload a folder and to download it again.

Small files are committed as they are, others by Git LFS. Not there: xet transfers, which the real hub uses for large files,
branches, pull requests, and pages.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_secret"


class FakeHub(ThreadingHTTPServer):
    """The hub.

    Args:
        lfs: endings of the files that are uploaded by Git LFS.

    Attributes:
        url: its endpoint.
        repositories: the files of each repository, by path.
        private: names of private repositories.
        uploaded: content of the objects of Git LFS, by SHA-256.
        requests: method and path of each request.
    """

    daemon_threads = True

    def __init__(self, lfs: tuple[str, ...] = ()) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lfs = lfs
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.uploaded: dict[str, bytes] = {}
        self.requests: list[str] = []

    def commit(self, name: str) -> str:
        """Hash of the content of a repository."""
        content = sorted((path, sha256(data)) for path, data in self.repositories[name].items())
        return hashlib.sha1(json.dumps(content).encode()).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._route()

    def do_HEAD(self) -> None:
        self._route()

    def do_POST(self) -> None:
        self._route()

    def do_PUT(self) -> None:
        self._route()

    def _route(self) -> None:
        body = self._body()
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        may_write = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if self.command in ("POST", "PUT") and not may_write and not path.startswith("/objects/"):
            self._send({"error": "Invalid username or password."}, 401)
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._send({"errors": [], "warnings": []})
        elif match := re.fullmatch(r"/objects/(\w{64})", path):
            assert sha256(body) == match[1]
            self.server.uploaded[match[1]] = body
            self._send({})
        elif match := re.match(r"/(?:api/models/)?([\w-]+/[\w.-]+?)(?:\.git)?(?:/|$)", path):
            self._in_repository(match[1], path[match.end() :], body)
        else:
            self._send({"error": f"no {path} here"}, 404)

    def _create(self, asked: Mapping[str, Any]) -> None:
        name = f"{asked.get('organization', 'me')}/{asked['name']}"
        if name in self.server.repositories:
            self._send({"error": "You already created this model repo", "url": f"{self.server.url}/{name}"}, 409)
            return
        self.server.repositories[name] = {}
        if asked.get("private") or asked.get("visibility") == "private":
            self.server.private.add(name)
        self._send({"url": f"{self.server.url}/{name}", "name": name})

    def _in_repository(self, name: str, rest: str, body: bytes) -> None:
        files = self.server.repositories.get(name)
        if files is None:
            self._send({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        elif rest.startswith("preupload/"):
            asked = json.loads(body)["files"]
            modes = ["lfs" if file["path"].endswith(self.server.lfs or "/") else "regular" for file in asked]
            found = [
                {"path": f["path"], "uploadMode": m, "shouldIgnore": False} for f, m in zip(asked, modes, strict=True)
            ]
            self._send({"files": found})
        elif rest == "info/lfs/objects/batch":
            objects = [
                {**wanted, "actions": {"upload": {"href": f"{self.server.url}/objects/{wanted['oid']}"}}}
                for wanted in json.loads(body)["objects"]
            ]
            self._send({"transfer": "basic", "objects": objects})
        elif rest.startswith("commit/"):
            self._commit(name, files, body)
        elif rest in ("", "revision/main"):
            self._send(
                {"id": name, "sha": self.server.commit(name), "private": name in self.server.private, "siblings": []}
            )
        elif rest.startswith("tree/"):
            self._send([{"type": "file", "path": p, "size": len(c), "oid": sha256(c)[:40]} for p, c in files.items()])
        elif rest.startswith("resolve/") and rest.split("/", 2)[2] in files:
            content = files[rest.split("/", 2)[2]]
            marks = {"X-Repo-Commit": self.server.commit(name), "ETag": f'"{sha256(content)}"'}
            self._send(content, 200, marks)
        else:
            self._send({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})

    def _commit(self, name: str, files: dict[str, bytes], body: bytes) -> None:
        for line in body.splitlines():
            part = json.loads(line)
            value = part["value"]
            if part["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif part["key"] == "lfsFile":
                files[value["path"]] = self.server.uploaded[value["oid"]]
        commit = self.server.commit(name)
        self._send({"success": True, "commitOid": commit, "commitUrl": f"{self.server.url}/{name}/commit/{commit}"})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _send(self, content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
