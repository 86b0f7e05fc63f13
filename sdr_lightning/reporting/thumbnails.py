"""Small images named by their keys, for the page (inside it) and for Markdown (beside it)."""

import base64
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

_MIME = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}


def data_uri(content: bytes, mime: str) -> str:
    """Bytes as an address that needs no other file."""
    return f"data:{mime};base64,{base64.b64encode(content).decode('ascii')}"


@dataclass(frozen=True)
class Thumbnails:
    """The folder ``thumbnails`` of a study, which may be absent or incomplete."""

    root: Path

    def path(self, key: str) -> Path | None:
        """The image of a key, None where there is none. A key never leads out of the folder."""
        folder = (self.root / "thumbnails").resolve()
        for suffix in _MIME:
            path = (folder / f"{key}{suffix}").resolve()
            if path.is_relative_to(folder) and path.is_file():
                return path
        return None

    def embedded(self, key: str) -> str | None:
        """The image as a data URI."""
        path = self.path(key)
        return None if path is None else data_uri(path.read_bytes(), _MIME[path.suffix])

    def link(self, key: str) -> str | None:
        """The image's address relative to the study's folder."""
        path = self.path(key)
        return None if path is None else quote(path.relative_to(self.root.resolve()).as_posix())
