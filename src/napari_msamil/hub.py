"""Model files from the Hugging Face hub, kept in the cache folder."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from napari_msamil.cache import cache_dir
from napari_msamil.errors import CheckpointError

HUB_FILE = "model.safetensors"
_REFERENCE = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+?)(@(?P<revision>[\w./-]+))?/?")
_OFFLINE = (
    "{} is not in the cache and the hub cannot be reached. Connect to the network once, "
    "or download the file and give its path."
)


def hub_folder() -> Path:
    """Where downloaded models are kept."""
    return cache_dir() / "hub"


def fetch_from_hub(reference: str) -> Path:
    """Find `model.safetensors` of `hf://owner/name[@revision]` in the cache, or download it.

    A file in the cache is used without asking the hub, so that answers do not change by themselves; to get
    a newer one, name its revision.

    Raises:
        CheckpointError: The reference is malformed, the hub cannot be reached, or it has no such model.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise CheckpointError(
            f"{reference!r} is not a hub reference. Write hf://owner/name or hf://owner/name@revision."
        )
    repo, revision = match["repo"], match["revision"]
    cached = _cached(repo, revision)
    if cached is not None:
        return cached
    if not _hub_is_known():
        raise CheckpointError(_OFFLINE.format(reference))
    return _download(reference, repo, revision)


def _cached(repo: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(
        repo, HUB_FILE, cache_dir=hub_folder(), revision=revision
    )
    return Path(found) if isinstance(found, str) else None


def _hub_is_known() -> bool:
    """Whether the hub's name resolves; without this look, its client would retry for half a minute."""
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        return False
    if getproxies():
        return True
    try:
        socket.getaddrinfo(urlsplit(ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


def _download(reference: str, repo: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
    )

    try:
        return Path(
            hf_hub_download(repo, HUB_FILE, revision=revision, cache_dir=hub_folder())
        )
    except LocalEntryNotFoundError as error:
        raise CheckpointError(_OFFLINE.format(reference)) from error
    except EntryNotFoundError as error:
        raise CheckpointError(
            f"{reference} has no file {HUB_FILE}, so it is not an msamil model."
        ) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{reference} cannot be fetched ({type(error).__name__}). Check the name, the revision and your access rights."
        ) from error
