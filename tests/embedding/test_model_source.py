"""Where models come from, and how it is told that one does not come. What needs the hub runs against one of the
tests' own, in a process of its own, since the hub's client reads its settings when imported."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pixelmemory.embedding import open_embedder, parse_embedding_config
from pixelmemory.errors import ModelLoadError
from tests.harness.tiny_models import change_weight, save_bert

COMMIT = "0123456789abcdef0123456789abcdef01234567"

#: prints one JSON object per model id: its fingerprint, or the error
CHILD = """
import json, sys
import pixelmemory.embedding as embedding
import pixelmemory.embedding.source as source
source._PROBE_SECONDS = 2.0
print("imported", file=sys.stderr, flush=True)
for model_id in sys.argv[1:]:
    try:
        embedder = embedding.open_embedder(embedding.parse_embedding_config({"model_id": model_id, "device": "cpu"}))
        answer = {"fingerprint": embedder.fingerprint}
    except Exception as error:
        answer = {"error": type(error).__name__, "text": str(error)}
    heavy = [name for name in ("torch", "sentence_transformers", "transformers") if name in sys.modules]
    print(json.dumps(answer | {"imported": heavy}), flush=True)
"""


class Hub(ThreadingHTTPServer):
    """As much of the Hugging Face hub's protocol as a download needs, over one folder of models."""

    daemon_threads = True

    def __init__(self, models: Path) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.models = models
        self.requests: list[str] = []
        #: set when the test ends; a model named "silent" is not answered before
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class HubHandler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        path = self.path.split("?")[0].strip("/")
        if "silent" in path:
            self.server.released.wait()
        if path.startswith("api/models/"):
            self.describe(path.removeprefix("api/models/"))
        else:
            organization, name, _, _, rest = path.split("/", 4)
            file = self.server.models / organization / name / rest
            if file.is_file():
                content = file.read_bytes()
                self.answer(200, content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"'})
            else:
                self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_GET  # noqa: N815 - the base class names it so

    def describe(self, path: str) -> None:
        repo_id, _, question = path.partition("/revision/")
        repo_id, _, tree = repo_id.partition("/tree/")
        folder = self.server.models / repo_id
        if not folder.is_dir():
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            return
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [file.relative_to(folder).as_posix() for file in files]
        answer: object = {"id": repo_id, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
        if tree and not question:
            answer = [
                {
                    "type": "file",
                    "path": name,
                    "size": file.stat().st_size,
                    "oid": hashlib.sha1(name.encode()).hexdigest(),
                }
                for name, file in zip(names, files, strict=True)
            ]
        self.answer(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"X-Repo-Commit": COMMIT, "Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        with contextlib.suppress(ConnectionError):  # who asked may have given up
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the base class names it so
        """Keep quiet."""


@pytest.fixture(scope="session")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("source") / "bert")


@pytest.fixture
def model(master: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(master, tmp_path / "model"))


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub(tmp_path / "hub") as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


def fingerprint_of(path: Path) -> str:
    config = parse_embedding_config({"model_id": str(path), "device": "cpu"})
    assert config is not None
    embedder = open_embedder(config)
    assert embedder is not None
    return embedder.fingerprint


def open_elsewhere(home: Path, *model_ids: str, **environment: str) -> tuple[list[dict[str, object]], str]:
    """Open models in a new process; what came of each, and what was written to stderr after the imports."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *model_ids],
        env={**os.environ, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home), "NO_PROXY": "*", **environment},
        capture_output=True,
        text=True,
        timeout=400,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(model_ids), done.stderr
    return answers, done.stderr.partition("imported\n")[2]


def cache_model(home: Path, model: Path, repo_id: str) -> Path:
    """Put a model into the hub's cache under ``home``; its snapshot."""
    folder = home / "hub" / f"models--{repo_id.replace('/', '--')}"
    shutil.copytree(model, folder / "snapshots" / COMMIT)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    return folder / "snapshots" / COMMIT


# -- folders


def refused(path: Path | str, **keys: object) -> ModelLoadError:
    config = parse_embedding_config({"model_id": str(path), "device": "cpu", **keys})
    assert config is not None
    with pytest.raises(ModelLoadError) as caught:
        open_embedder(config)
    assert caught.value.model == str(path)
    return caught.value


@pytest.mark.parametrize("path", ["/no/such/folder", "./no-such-folder", "~/no-such-folder-here", "a/b/c"])
def test_a_folder_that_is_not_there(path: str) -> None:
    error = refused(path)
    assert error.reason == "there is no such folder"
    assert "embedding_config=None" in error.remedy


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    assert "is no model" in refused(tmp_path).reason


def test_a_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert "is a file" in refused(tmp_path / "model.safetensors").reason


@pytest.mark.parametrize("name", ["two words", "x" * 200, "a--b", "end."])
def test_what_is_neither_a_folder_nor_an_id(name: str) -> None:
    assert "neither a folder nor an id" in refused(name).reason


@pytest.mark.parametrize("kept_bytes", [0, 7, 200, 5000])
def test_cut_weights(model: Path, kept_bytes: int) -> None:
    os.truncate(model / "model.safetensors", kept_bytes)
    error = refused(model)
    assert str(model) in error.remedy


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "1_Pooling/config.json"])
def test_a_missing_file(model: Path, name: str) -> None:
    (model / name).unlink()
    refused(model)


def test_damaged_json(model: Path) -> None:
    (model / "config.json").write_text("{")
    assert "JSON" in refused(model).reason


def test_a_missing_vocabulary(model: Path) -> None:
    """The libraries load it all the same, and every word is unknown."""
    for name in ("tokenizer.json", "vocab.txt"):
        (model / name).unlink(missing_ok=True)
    assert "vocabulary is missing" in refused(model).reason


def test_a_missing_weight(model: Path) -> None:
    """The libraries fill it with random numbers, others at each load."""
    from safetensors.numpy import load_file, save_file

    weights = load_file(model / "model.safetensors")
    del weights["encoder.layer.0.output.dense.weight"]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    assert "encoder.layer.0.output.dense.weight" in refused(model).reason


def test_a_missing_pooler_does_not_matter(model: Path) -> None:
    from safetensors.numpy import load_file, save_file

    weights = load_file(model / "model.safetensors")
    left = {name: weight for name, weight in weights.items() if "pooler" not in name}
    assert len(left) < len(weights)
    save_file(left, model / "model.safetensors", metadata={"format": "pt"})
    fingerprint_of(model)


def test_weights_that_are_no_numbers(model: Path) -> None:
    for row in range(64):
        change_weight(model, "embeddings.position_embeddings.weight", row, float("nan"))
    assert "not a finite vector" in refused(model).reason


# -- the hub


def test_without_a_network_the_default_model_fails_soon_and_says_what_to_do(tmp_path: Path) -> None:
    (answer, offline), stderr = open_elsewhere(
        tmp_path, "intfloat/e5-large-v2", "all-MiniLM-L6-v2", HF_ENDPOINT="http://127.0.0.1:9"
    )
    for each in (answer, offline):
        assert each["error"] == "ModelLoadError"
        assert "cannot be reached" in str(each["text"])
        assert "embedding_config=None" in str(each["text"])
        assert "HF_HOME" in str(each["text"])
        assert each["imported"] == []  # it was known before the seconds that these take
    assert stderr == ""


def test_a_hub_that_has_no_such_model_or_does_not_answer(tmp_path: Path, hub: Hub) -> None:
    answers, stderr = open_elsewhere(tmp_path, "org/unknown", "org/silent", HF_ENDPOINT=hub.url)
    assert "has no such model" in str(answers[0]["text"])
    assert "cannot be reached" in str(answers[1]["text"])
    assert [answer["error"] for answer in answers] == ["ModelLoadError"] * 2
    assert stderr == ""


def test_a_model_is_downloaded_once_and_is_the_same_as_its_folder(tmp_path: Path, model: Path, hub: Hub) -> None:
    shutil.copytree(model, hub.models / "org" / "tiny")
    (hub.models / "org" / "tiny" / "pytorch_model.bin").write_bytes(b"the same weights once more")
    shutil.copytree(model, hub.models / "sentence-transformers" / "short-name")
    home = tmp_path / "home"
    broken = cache_model(home, model, "org/interrupted")
    shutil.copytree(model, hub.models / "org" / "interrupted")
    (broken / "tokenizer.json").unlink()

    ids = ["org/tiny", "short-name", "org/interrupted", "org/tiny", "short-name", "org/interrupted"]
    answers, _ = open_elsewhere(home, *ids, HF_ENDPOINT=hub.url)

    assert [answer.get("fingerprint", answer) for answer in answers] == [fingerprint_of(model)] * len(ids)
    downloads = [request for request in hub.requests if request.startswith("GET") and "/resolve/" in request]
    assert len([request for request in downloads if "model.safetensors" in request and "org/tiny" in request]) == 1
    assert len([request for request in downloads if "short-name" in request and "model.safetensors" in request]) == 1
    assert len([request for request in downloads if "interrupted" in request and "tokenizer.json" in request]) == 1
    assert not [request for request in downloads if "pytorch_model.bin" in request]


def test_a_cached_model_needs_no_network_and_loads_in_silence(tmp_path: Path, model: Path, minilm_path: str) -> None:
    snapshot = cache_model(tmp_path, model, "org/tiny")
    answers, stderr = open_elsewhere(
        tmp_path, "org/tiny", str(snapshot), minilm_path, HF_ENDPOINT="http://127.0.0.1:9", PYTHONWARNINGS="default"
    )
    assert [answer.get("fingerprint", answer) for answer in answers[:2]] == [fingerprint_of(model)] * 2
    assert answers[2]["fingerprint"] == fingerprint_of(Path(minilm_path))
    assert stderr == ""


def test_offline_nothing_is_downloaded_and_a_model_cached_without_its_pooling_is_not_taken(
    tmp_path: Path, model: Path
) -> None:
    """Other libraries cache models so, since they do not need modules.json."""
    snapshot = cache_model(tmp_path, model, "org/tiny")
    (snapshot / "modules.json").unlink()
    answers, _ = open_elsewhere(tmp_path, "intfloat/e5-large-v2", "org/tiny", HF_HUB_OFFLINE="1")
    for answer in answers:
        assert answer["error"] == "ModelLoadError"
        assert "HF_HUB_OFFLINE forbids" in str(answer["text"])


def test_importing_the_package_imports_no_model_library() -> None:
    code = (
        "import sys, pixelmemory.embedding as e; print([n for n in ('torch', 'huggingface_hub') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=400, check=True)
    assert done.stdout.strip() == "[]"
