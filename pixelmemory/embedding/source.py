"""Where a model's files are: a folder, the hub's cache on this machine, else the hub.

A machine without a network must learn that within seconds: the hub's client alone tries each of many files for 20
seconds. So the cache is asked first, then the hub is asked one question with a deadline, and only then is anything
downloaded, for as long as that takes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
from pathlib import Path
from typing import Any

import msgspec

from pixelmemory.errors import ModelLoadError, StoreError
from pixelmemory.paths import absolute_path

__all__ = ["REMEDY", "ModelSource", "find_model", "first_line", "is_e5"]

_log = logging.getLogger("pixelmemory.embedding")

_PROBE_SECONDS = 10.0
#: the organization of models that are named without one, as sentence-transformers has it
_DEFAULT_ORGANIZATION = "sentence-transformers"
#: formats that are not loaded; they may be as large as the weights
_UNUSED_FILES = ["onnx/*", "openvino/*", "*.onnx", "*.h5", "*.msgpack", "*.ot", "*.gguf", "coreml/*", "*.tflite"]

REMEDY = (
    "Pass the path of a model's folder (a package may carry one), or allow the download (a network, HF_HUB_OFFLINE "
    "unset, HF_HOME where the cache is), or pass embedding_config=None for a store without semantic search"
)


class ModelSource(msgspec.Struct, frozen=True, kw_only=True):
    """A model whose files are on this machine."""

    #: as the user gave it
    model_id: str
    #: what sentence-transformers is to load: the folder, or the id in the hub's cache
    target: str
    #: where the files are
    folder: Path
    #: the model's name without what is of this machine
    name: str
    #: whether the files lie in the hub's cache, where a download can complete them
    from_hub: bool


def find_model(model_id: str, *, refresh: bool = False) -> ModelSource:
    """Find the files of ``model_id``, a path or an id on the hub, and download them if they are nowhere here.

    Args:
        model_id: as the user gave it.
        refresh: complete the hub's cache from the hub even if it seems whole.

    Raises:
        ModelLoadError: there is no such folder or model, or the hub cannot be reached.
    """
    is_path = model_id.startswith(("/", ".", "~")) or model_id.count("/") > 1 or "\\" in model_id
    try:
        path = absolute_path(model_id, "embedding_config")
        if path.exists():
            return _from_folder(model_id, path)
    except (StoreError, OSError) as error:
        if is_path:
            raise ModelLoadError(model_id, str(error), REMEDY) from error
    if is_path:
        raise ModelLoadError(model_id, "there is no such folder", REMEDY)
    return _from_hub(model_id, refresh)


def is_e5(name: str) -> bool:
    """Whether a model of this name wants "query: " and "passage: "; its instruct variants want sentences instead."""
    lower = name.lower()
    return re.search(r"(?<![a-z0-9])m?e5(?![a-z0-9])", lower) is not None and "instruct" not in lower


def _from_folder(model_id: str, path: Path) -> ModelSource:
    if not path.is_dir():
        raise ModelLoadError(model_id, "it is a file, not a folder", REMEDY)
    if not ((path / "modules.json").is_file() or (path / "config.json").is_file()):
        raise ModelLoadError(model_id, "the folder is no model: it has neither modules.json nor config.json", REMEDY)
    # in the hub's cache the folder's name is a commit, and the model's is two levels up
    named = path.parent.parent if path.parent.name == "snapshots" else path
    return ModelSource(model_id=model_id, target=str(path), folder=path, name=named.name, from_hub=False)


def _from_hub(model_id: str, refresh: bool) -> ModelSource:
    try:
        import huggingface_hub
        from huggingface_hub.errors import HFValidationError
    except ImportError as error:
        raise ModelLoadError(model_id, f"huggingface_hub is missing ({error})", REMEDY) from error

    candidates = [model_id] if "/" in model_id else [f"{_DEFAULT_ORGANIZATION}/{model_id}", model_id]
    try:
        for repo_id in candidates:
            if (folder := _cached(repo_id)) is not None and not refresh:
                return ModelSource(model_id=model_id, target=repo_id, folder=folder, name=repo_id, from_hub=True)
    except HFValidationError as error:
        raise ModelLoadError(model_id, "it is neither a folder nor an id on the hub", REMEDY) from error

    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise ModelLoadError(model_id, "it is not on this machine, and HF_HUB_OFFLINE forbids to download it", REMEDY)
    repo_id, files = _ask_hub(model_id, candidates)
    folder = _download(model_id, repo_id, files)
    return ModelSource(model_id=model_id, target=repo_id, folder=folder, name=repo_id, from_hub=True)


def _cache_folder() -> str | None:
    return os.environ.get("SENTENCE_TRANSFORMERS_HOME")


def _cached(repo_id: str) -> Path | None:
    """The snapshot of ``repo_id`` in the hub's cache, if it is whole.

    One without modules.json is taken only where the hub is known to have none: what another library cached of a model
    lacks the pooling, and would load with the wrong one.
    """
    from huggingface_hub import snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repo_id, cache_dir=_cache_folder(), local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    modules = try_to_load_from_cache(repo_id, "modules.json", cache_dir=_cache_folder())
    weights = any(path.suffix in (".safetensors", ".bin") for path in folder.rglob("*"))
    return folder if modules is not None and weights else None


def _ask_hub(model_id: str, candidates: list[str]) -> tuple[str, list[str]]:
    """Which of ``candidates`` the hub has, and the names of its files; asked in a thread, since name lookups have no
    timeout of their own."""
    answers: list[tuple[str, list[str]] | Exception] = []

    def ask() -> None:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import RepositoryNotFoundError

        for repo_id in candidates:
            try:
                info = HfApi().model_info(repo_id, timeout=_PROBE_SECONDS)
                answers.append((repo_id, [file.rfilename for file in info.siblings or ()]))
                return
            except RepositoryNotFoundError as error:
                answers.append(error)
            except Exception as error:  # noqa: BLE001 - whatever it is, the caller raises it as a ModelLoadError
                answers.append(error)
                return

    thread = threading.Thread(target=ask, name="pixelmemory-hub-probe", daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS * 1.5)
    if not answers:
        raise ModelLoadError(model_id, "it is not on this machine, and the hub does not answer", REMEDY)
    answer = answers[-1]
    if isinstance(answer, Exception):
        raise ModelLoadError(model_id, f"it is not on this machine, and the hub {_why(answer)}", REMEDY) from answer
    return answer


def _why(error: Exception) -> str:
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    if isinstance(error, RepositoryNotFoundError):
        return "has no such model (or it is private, and no token is set)"
    if isinstance(error, HfHubHTTPError):
        return f"refused it ({first_line(error)})"
    return f"cannot be reached ({first_line(error)})"


def _download(model_id: str, repo_id: str, files: list[str]) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError

    ignored = _UNUSED_FILES + (["*.bin"] if any(name.endswith(".safetensors") for name in files) else [])
    _log.info("downloading the embedding model %s", repo_id)
    arguments: dict[str, Any] = {"cache_dir": _cache_folder()}
    try:
        folder = Path(snapshot_download(repo_id, ignore_patterns=ignored, **arguments))
        if "modules.json" not in files:
            with contextlib.suppress(EntryNotFoundError):
                hf_hub_download(repo_id, "modules.json", **arguments)  # leaves in the cache that there is none
    except Exception as error:
        raise ModelLoadError(model_id, f"the download failed ({first_line(error)})", REMEDY) from error
    return folder


def first_line(error: BaseException) -> str:
    """What the error is and what it says, for a message of ours."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('. ')}" if lines else type(error).__name__
