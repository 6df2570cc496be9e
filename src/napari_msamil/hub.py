"""Model files from the Hugging Face hub, kept in the cache folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

from napari_msamil.errors import CheckpointError

HUB_FILE = "model.safetensors"
_REFERENCE = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+?)(@(?P<revision>[\w./-]+))?/?")


def hub_folder() -> Path:
    """Where downloaded models are kept: `$MSAMIL_CACHE/hub`, or the platform's cache folder."""
    import platformdirs

    root = os.environ.get("MSAMIL_CACHE") or platformdirs.user_cache_dir(
        "napari-msamil", appauthor=False
    )
    return Path(root).expanduser() / "hub"


def fetch_from_hub(reference: str) -> Path:
    """Download `model.safetensors` of `hf://owner/name[@revision]`, or find it in the cache.

    Raises:
        CheckpointError: The reference is malformed, the hub cannot be reached, or it has no such model.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
    )

    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise CheckpointError(
            f"{reference!r} is not a hub reference. Write hf://owner/name or hf://owner/name@revision."
        )
    repo, revision = match["repo"], match["revision"]
    try:
        found = hf_hub_download(
            repo, HUB_FILE, revision=revision, cache_dir=hub_folder()
        )
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{reference} is not in the cache and the hub cannot be reached. Connect to the network once, "
            "or download the file and give its path."
        ) from error
    except EntryNotFoundError as error:
        raise CheckpointError(
            f"{reference} has no file {HUB_FILE}, so it is not an msamil model."
        ) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{reference} cannot be fetched ({type(error).__name__}). Check the name, the revision and your access rights."
        ) from error
    return Path(found)
