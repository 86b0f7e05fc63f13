"""Thumbnails of the images of a study: embedded in HTML, linked from Markdown."""

import base64
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

_MIME = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}


def data_uri(content: bytes, mime: str) -> str:
    """Encode bytes as a data URI."""
    return f"data:{mime};base64,{base64.b64encode(content).decode('ascii')}"


@dataclass(frozen=True)
class Thumbnails:
    """The folder ``thumbnails`` of a study; it may be missing or incomplete.

    Attributes:
        root: folder of the study.
    """

    root: Path

    def path(self, key: str) -> Path | None:
        """Return the file of an image; None if there is none inside the folder."""
        folder = (self.root / "thumbnails").resolve()
        for suffix in _MIME:
            path = (folder / f"{key}{suffix}").resolve()
            if path.is_relative_to(folder) and path.is_file():
                return path
        return None

    def embedded(self, key: str) -> str | None:
        """Return the image as a data URI; None if there is none."""
        path = self.path(key)
        return None if path is None else data_uri(path.read_bytes(), _MIME[path.suffix])

    def link(self, key: str) -> str | None:
        """Return the URL of the image relative to the study; None if there is none."""
        path = self.path(key)
        return None if path is None else quote(path.relative_to(self.root.resolve()).as_posix())
