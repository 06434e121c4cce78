# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Fetch, verify and go offline: the stories of the weights, with a server on loopback in the place of the network."""

from __future__ import annotations

import hashlib
import io
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save

from anomalib_clipsam import ClipSam
from anomalib_clipsam.cli import main
from anomalib_clipsam.clip import build_clip
from anomalib_clipsam.sam import build_sam
from anomalib_clipsam.weights import store, table
from anomalib_clipsam.weights.store import WEIGHTS_VARIABLE, fetch, locate
from anomalib_clipsam.weights.table import Source, WeightFile, WeightPair

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTENT = bytes(range(256)) * 4096
"""What is served: 1 MiB."""
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")
"""Variables that would keep a request from loopback."""
SHA256 = hashlib.sha256(CONTENT).hexdigest()
GIT_BLOB = hashlib.sha1(b"blob 1048576\0" + CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves files at ``/HOW/...``: as ``good``, ``wrong``, ``cut``, ``silent``, ``slow``, ``endless``, or 404."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {"some.bin": CONTENT}
        self.requests: list[str] = []
        self.sent = 0

    @property
    def url(self) -> str:
        """Address of the root."""
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """Answers a request as the first part of its path says."""

    def do_GET(self) -> None:  # the name that http.server asks for
        self.server.requests.append(self.path)
        _, how, *_, name = self.path.split("/")
        content = self.server.files.get(name, b"")
        if how not in ("good", "wrong", "cut", "silent", "slow", "endless"):
            self.send_error(404)
            return
        self.send_response(200)
        if how == "endless":  # the file itself, and then as much again and again
            self.end_headers()
            for _ in range(64):
                self.wfile.write(content)
                self.server.sent += len(content)
            return
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        half = len(content) // 2
        if how == "wrong":
            content = content[:-1] + b"?"
        self.wfile.write(content[:half])
        if how == "cut":
            return
        if how == "silent":
            time.sleep(2)
        if how == "slow":
            time.sleep(5)
        self.wfile.write(content[half:])

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    """A server on loopback."""
    server = Server()
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # a client that hangs up is part of the play
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of anomalib's for pretrained weights, not yet made, on a machine that has no others, online."""
    monkeypatch.setattr(store, "get_pretrained_weights_dir", lambda: tmp_path / "anomalib")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in (*OFFLINE, WEIGHTS_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "anomalib" / "clip_sam"


def row_at(*addresses: str) -> WeightFile:
    """A row of the table with :data:`CONTENT` at these addresses."""
    sources = tuple(Source("some.bin", len(CONTENT), SHA256, url=address) for address in addresses)
    return WeightFile("some", "SAM", "vit_b", 1024, "MIT", sources)


def blob_at(*addresses: str) -> WeightFile:
    """The same, with its size unknown, and known by its name in a git repository."""
    sources = tuple(Source("some.bin", None, None, GIT_BLOB, about=10**6, url=address) for address in addresses)
    return replace(row_at(), sources=sources, role="adapters", localizer="april_gan")


def left_in(folder: Path) -> list[str]:
    """What is in a folder beside locks."""
    return [path.name for path in folder.iterdir() if path.suffix != ".lock"]


def test_fetched_once(server: Server, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = row_at(f"{server.url}/good/some.bin")
    for _ in range(2):
        assert locate(row).read_bytes() == CONTENT
    assert locate(row) == folder / "some.bin"
    assert server.requests == ["/good/some.bin"]
    assert left_in(folder) == ["some.bin"]
    assert "1.00M/1.00M" in capsys.readouterr().err  # the progress bar


def test_hub_is_asked_for_the_pinned_commit(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = f"{server.url}/good/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    commit = "0123456789" * 4
    source = Source("own.bin", len(CONTENT), SHA256, repository="owner/name", revision=commit, path="deep/some.bin")
    assert locate(replace(row_at(), sources=(source,))) == folder / "own.bin"
    assert server.requests == [f"/good/owner/name/resolve/{commit}/deep/some.bin"]


@pytest.mark.parametrize("how", ["gone", "wrong", "cut", "endless"])
def test_second_source_when_the_first_fails(server: Server, folder: Path, how: str) -> None:
    row = row_at(f"{server.url}/{how}/some.bin", f"{server.url}/good/some.bin")
    assert locate(row).read_bytes() == CONTENT
    assert server.requests == [f"/{how}/some.bin", "/good/some.bin"]
    assert left_in(folder) == ["some.bin"]


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("gone", "HTTP Error 404: Not Found"),
        ("wrong", "it gave 1,048,576 bytes with the SHA-256 "),
        ("cut", "it gave 524,288 bytes with the SHA-256 "),
        ("endless", "it gives more than 1,048,576 bytes, and was stopped"),
        ("silent", "timed out"),
        ("full", "GB left, and the file has 0.00 GB"),
        ("offline", "not tried, because HF_HUB_OFFLINE is set"),
        ("nobody", "Connection refused"),
    ],
)
def test_failure_says_why_and_leaves_nothing(
    server: Server,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    reason: str,
) -> None:
    monkeypatch.setattr(store, "STALLED_AFTER", 0.5)
    address = f"{server.url}/{how if how in ('wrong', 'cut', 'endless', 'silent', 'gone') else 'good'}/some.bin"
    if how == "full":
        monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    if how == "offline":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    if how == "nobody":
        server.shutdown()
        server.server_close()
    with pytest.raises(FileNotFoundError) as caught:
        locate(row_at(address))
    for part in (reason, address, SHA256, f"{len(CONTENT):,} bytes", str(folder), "not set", "weights='lite'"):
        assert part in str(caught.value)
    assert left_in(folder) == []
    assert server.sent < 32 * len(CONTENT)  # of 64
    assert server.requests == ([] if how in ("full", "offline", "nobody") else [f"/{how}/some.bin"])


def test_git_blob_is_fetched_once(server: Server, folder: Path) -> None:
    row = blob_at(f"{server.url}/good/some.bin")
    for _ in range(2):
        assert locate(row).read_bytes() == CONTENT
    assert server.requests == ["/good/some.bin"]
    assert left_in(folder) == ["some.bin"]


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("gone", "HTTP Error 404"),
        ("wrong", "it gave 1,048,576 bytes with the git blob id "),
        ("cut", "it gave 524,288 bytes with the git blob id "),
        ("endless", "it gives more than 2,000,000 bytes, and was stopped"),
    ],
)
def test_git_blob_that_is_another_file(server: Server, folder: Path, how: str, reason: str) -> None:
    """Nothing of it stays, and the second source is asked."""
    address = f"{server.url}/{how}/some.bin"
    with pytest.raises(FileNotFoundError) as caught:
        locate(blob_at(address))
    for part in (reason, address, f"some.bin (git blob {GIT_BLOB}, from", str(folder), "localizer='dense'"):
        assert part in str(caught.value)
    assert left_in(folder) == []
    assert locate(blob_at(address, f"{server.url}/good/some.bin")).read_bytes() == CONTENT
    assert left_in(folder) == ["some.bin"]


def test_damaged_git_blob_is_refused_and_named(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "some.bin").write_bytes(CONTENT[:-1])
    with pytest.raises(ValueError, match=rf"some.bin is damaged or another file: it has git blob .*, not {GIT_BLOB}"):
        locate(blob_at("http://example.invalid/some.bin"))


FETCH = """
import sys
from pathlib import Path
from anomalib_clipsam.weights.store import fetch
from anomalib_clipsam.weights.table import Source, WeightFile
address, size, sha256, folder = sys.argv[1:]
source = Source("some.bin", int(size), sha256, url=address)
print(fetch(WeightFile("some", "SAM", "vit_b", 1024, "MIT", (source,)), Path(folder)))
"""


def start_fetch(address: str, folder: Path) -> subprocess.Popen:
    """Fetch in a process of its own."""
    command = [sys.executable, "-c", FETCH, address, str(len(CONTENT)), SHA256, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_request(server: Server, process: subprocess.Popen) -> None:
    """Wait until a download has begun."""
    while not server.requests:
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)


@pytest.mark.slow
def test_two_processes_at_once(server: Server, folder: Path) -> None:
    """One fetches, the other waits for it."""
    processes = [start_fetch(f"{server.url}/slow/some.bin", folder) for _ in range(2)]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [out for out, _ in outputs] == [f"{folder / 'some.bin'}\n"] * 2, outputs
    assert server.requests == ["/slow/some.bin"]
    assert left_in(folder) == ["some.bin"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_interrupted_download(server: Server, folder: Path) -> None:
    """What a killed process leaves is not taken for the file, and the next one fetches it."""
    process = start_fetch(f"{server.url}/slow/some.bin", folder)
    wait_for_request(server, process)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (folder / "some.bin").exists()
    assert fetch(row_at(f"{server.url}/good/some.bin"), folder).read_bytes() == CONTENT


# ---------------------------------------------------------------- the whole way, with weights of the demo's size


@pytest.fixture
def published(server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """Small networks of random weights that the server has, under a name of the table."""
    torch.manual_seed(0)
    rows = []
    for role, model, side in (("clip", build_clip("demo", quick_gelu=False), 160), ("sam", build_sam("demo"), 192)):
        content = save({key: value.half() for key, value in model.state_dict().items()})
        name = f"published_{role}.safetensors"
        server.files[name] = content
        source = Source(name, len(content), hashlib.sha256(content).hexdigest(), url=f"{server.url}/good/{name}")
        rows.append(WeightFile(f"published_{role}", role.upper(), "demo", side, "MIT", (source,)))
    monkeypatch.setitem(table.WEIGHTS, "published", WeightPair(*rows, map_size=192))
    return "published"


@pytest.fixture
def with_prompts(server: Server, published: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same with Crane's localizer, and learned prompts for both data sets, which the server has too."""
    for trained_on in ("visa", "mvtec"):
        content = {"compound_prompts_text.0": torch.randn(4, 48)}
        for state in ("pos", "neg"):
            content |= {
                f"ctx_{state}": torch.randn(1, 1, 12, 48),
                f"token_prefix_{state}": torch.randn(1, 1, 1, 48),
                f"token_suffix_{state}": torch.randn(1, 1, 64, 48),
                f"tokenized_prompts_{state}": torch.arange(77).eq(15).int().view(1, 1, 77),
            }
        buffer = io.BytesIO()
        torch.save({"prompt_learner": content}, buffer)
        row = table.LEARNED[f"crane_{trained_on}"]
        (source,) = row.sources
        server.files[source.filename] = buffer.getvalue()
        source = Source(
            source.filename,
            len(buffer.getvalue()),
            hashlib.sha256(buffer.getvalue()).hexdigest(),
            url=f"{server.url}/good/{source.filename}",
        )
        monkeypatch.setitem(table.LEARNED, row.name, replace(row, architecture="demo", sources=(source,)))
    monkeypatch.setitem(table.WEIGHTS, published, replace(table.WEIGHTS[published], localizer="crane"))
    return published


def test_first_run_says_what_it_fetches(
    server: Server, folder: Path, with_prompts: str, caplog: pytest.LogCaptureFixture
) -> None:
    """All of it and its sizes, before the first byte; a second run has nothing to say."""
    image = torch.rand(1, 3, 80, 100)
    first = ClipSam(with_prompts).eval()(image)
    message = caplog.messages[0]
    for part in (
        "Not on this machine, and fetched now: ",
        "published_clip (8.8 MB), published_sam (5.6 MB), crane_visa (0.",
        "In all 0.01 GB",
    ):
        assert part in message
    assert server.requests == [
        "/good/crane_trained_on_visa.pth" if "crane" in name else f"/good/published_{name}.safetensors"
        for name in ("clip", "crane", "sam")
    ]
    caplog.clear()
    assert torch.equal(ClipSam(with_prompts).eval()(image).anomaly_map, first.anomaly_map)
    assert not any("fetched now" in text for text in caplog.messages)
    assert len(server.requests) == 3


def test_fetched_pair_has_its_prompts(
    server: Server,
    folder: Path,
    with_prompts: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Those for every data set that may be tested, so that a machine without a network has them too."""
    main(["weights", "list"])
    assert re.search(r"crane_mvtec +prompts .*published +0\.0 MB +MIT +no", capsys.readouterr().out)
    main(["weights", "fetch", with_prompts, "--to", str(tmp_path / "stick")])
    assert sorted(left_in(tmp_path / "stick")) == [
        "crane_trained_on_mvtec.pth",
        "crane_trained_on_visa.pth",
        "published_clip.safetensors",
        "published_sam.safetensors",
    ]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        FileNotFoundError, match=r"crane_visa are neither in .* or use localizer='dense', which needs none"
    ):
        locate(table.LEARNED["crane_visa"])
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path / "stick"))
    ClipSam(with_prompts, adapters="crane_mvtec")


def test_model_fetches_what_it_needs_once(server: Server, folder: Path, published: str) -> None:
    image = torch.rand(1, 3, 80, 100)
    first, second = (ClipSam(published, class_name="part").eval()(image) for _ in range(2))
    assert torch.equal(first.anomaly_map, second.anomaly_map)
    assert len(server.requests) == 2


def test_without_sam_only_clip_is_fetched(server: Server, folder: Path, published: str) -> None:
    ClipSam(published, refine=False)
    assert server.requests == ["/good/published_clip.safetensors"]


def test_folder_prepared_for_a_machine_without_network(
    server: Server,
    folder: Path,
    published: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["weights", "fetch", published, "--to", str(tmp_path / "stick")])
    assert f"set {WEIGHTS_VARIABLE} to the folder" in capsys.readouterr().out
    assert sorted(left_in(tmp_path / "stick")) == ["published_clip.safetensors", "published_sam.safetensors"]

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="not tried, because HF_HUB_OFFLINE is set"):
        ClipSam(published)
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path / "stick"))
    ClipSam(published)
    main(["weights", "list"])
    assert str(tmp_path / "stick" / "published_sam.safetensors") in capsys.readouterr().out
    assert not folder.exists() or left_in(folder) == []


def test_fetch_copies_what_is_here(server: Server, folder: Path, published: str, tmp_path: Path) -> None:
    main(["weights", "fetch", published])
    requests = list(server.requests)
    main(["weights", "fetch", "published_sam", "--to", str(tmp_path / "stick")])
    assert left_in(tmp_path / "stick") == ["published_sam.safetensors"]
    assert server.requests == requests


def test_verify_names_what_is_damaged(
    server: Server, folder: Path, published: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["weights", "fetch", published])
    main(["weights", "verify"])
    out = capsys.readouterr().out
    assert f"published_sam: sound, {folder / 'published_sam.safetensors'}" in out
    assert "sam_vit_b: not here" in out

    path = folder / "published_sam.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(SystemExit) as raised:
        main(["weights", "verify"])
    assert raised.value.code == 1
    out = capsys.readouterr().out
    assert f"published_sam: {path} is damaged or another file" in out
    assert "published_clip: sound" in out
    with pytest.raises(ValueError, match="is damaged or another file"):
        ClipSam(published)


def test_unknown_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["weights", "fetch", "vit_x"])
    assert raised.value.code == 2
    assert capsys.readouterr().err.startswith(
        "anomalib-clipsam weights fetch: Unknown weights 'vit_x'. Choose of vit_h"
    )
