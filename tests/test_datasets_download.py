"""Downloads: resumed, checked, extracted safely. The server is local."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from src.datasets import speech_commands
from src.datasets.download import extract, fetch
from src.registry import DATASETS

ARCHIVES = "http://download.tensorflow.org/data"


class Server:
    """Serves one content, with or without Range, and closes the connection after `limit` bytes of a response."""

    def __init__(self) -> None:
        self.content, self.ranges, self.limit, self.ranges_requested = b"", True, None, []  # type: ignore[var-annotated]
        outer: Any = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                wanted = self.headers.get("Range")
                outer.ranges_requested.append(wanted)
                start = int(wanted[6:-1]) if wanted and outer.ranges else 0
                if start >= len(outer.content):
                    self.send_error(416)
                    return
                body = outer.content[start:]
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: outer.limit])

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/x.tar.gz"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_resumes_after_a_break(server: Server, tmp_path: Path) -> None:
    server.content, server.limit = bytes(range(256)) * 4000, 300_000  # type: ignore[assignment]
    path = tmp_path / "x.tar.gz"
    with pytest.raises(OSError, match="run the command again"):
        fetch(server.url, path, sha(server.content))
    assert not path.exists()
    assert path.with_name("x.tar.gz.part").stat().st_size == 300_000
    server.limit = None
    fetch(server.url, path, sha(server.content))
    assert server.ranges_requested == [None, "bytes=300000-"]
    assert path.read_bytes() == server.content
    fetch(server.url, path, sha(server.content))
    assert len(server.ranges_requested) == 2


def test_server_without_ranges_starts_over_and_a_whole_part_is_taken(server: Server, tmp_path: Path) -> None:
    server.content, path = b"abc" * 1000, tmp_path / "x.tar.gz"
    path.with_name("x.tar.gz.part").write_bytes(b"abc" * 10)
    server.ranges = False
    fetch(server.url, path, sha(server.content))
    assert path.read_bytes() == server.content
    path.rename(path.with_name("x.tar.gz.part"))
    server.ranges = True
    fetch(server.url, path, sha(server.content))
    assert path.read_bytes() == server.content


def test_wrong_content_is_deleted(server: Server, tmp_path: Path) -> None:
    server.content = b"something else"
    with pytest.raises(ValueError, match="SHA-256"):
        fetch(server.url, tmp_path / "x", "0" * 64)
    assert not list(tmp_path.iterdir())


def test_no_server(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="run the command again"):
        fetch("http://127.0.0.1:9/x", tmp_path / "x", "0" * 64)


def archive(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def test_extraction_is_safe_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.tar.gz"
    path.parent.mkdir()
    for name in ("../escaped", "../../escaped"):
        path.write_bytes(archive({"fine": b"1", name: b"2"}))
        with pytest.raises(ValueError, match="refused or damaged"):
            extract(path, tmp_path / "deep" / "out")
    path.write_bytes(archive({"fine": bytes(100_000)})[:-40])
    with pytest.raises(ValueError, match="refused or damaged"):
        extract(path, tmp_path / "deep" / "out")
    assert [p.name for p in tmp_path.rglob("*")] == ["deep", "x.tar.gz"]


@pytest.mark.parametrize(("version", "name"), [("0.02", "v0.02"), ("0.02_test", "test_set_v0.02")])
def test_version_is_downloaded_on_request(
    version: str, name: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.content = archive({f"./yes/{i:08x}_nohash_0.wav": b"x" for i in range(5)})
    assert speech_commands.URL.format(version=name) == f"{ARCHIVES}/speech_commands_{name}.tar.gz"
    monkeypatch.setattr(speech_commands, "URL", server.url + "?{version}")
    monkeypatch.setitem(speech_commands.SHA256, version, sha(server.content))
    program = {"include": ("yes",), "default": (), "sample_rate": 16000, "seconds": 1.0, "seed": 0}
    for _ in range(2):
        corpus = DATASETS["speech_commands"](**program, source_dir=tmp_path / "sc", version=version)
        assert len(corpus.recordings) == 5
    assert len(server.ranges_requested) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["sc"]
