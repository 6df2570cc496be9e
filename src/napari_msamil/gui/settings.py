"""The user's settings from napari's Preferences, with defaults where napari is too old to have them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from napari_msamil.device import Runtime
    from napari_msamil.feature_store import FeatureStore

PLUGIN = "napari-msamil"


@dataclass(frozen=True)
class Settings:
    """What the user set under Preferences ▸ MSA-MIL.

    Attributes:
        device, precision: As `choose_runtime` takes them.
        batch_size: Patches per batch; 0 lets the engine find it.
        models_folder: Its checkpoints are offered; empty is none.
        cache_folder: Empty is the platform's own.
        cache_gb: Largest size of the feature cache in GB.
        offline: Whether the network is never asked.
    """

    device: str = "auto"
    precision: str = "auto"
    batch_size: int = 0
    models_folder: str = ""
    cache_folder: str = ""
    cache_gb: float = 20.0
    offline: bool = False

    def runtime(self) -> Runtime:
        """Device and precision for a run; imports torch.

        Raises:
            ConfigError: This machine does not have what was asked for.
        """
        from napari_msamil.device import choose_runtime

        return choose_runtime(self.device, self.precision, self.batch_size or None)

    def store(self) -> FeatureStore:
        """The feature cache."""
        from napari_msamil.feature_store import FeatureStore

        return FeatureStore(max_bytes=int(self.cache_gb * 1024**3))

    def checkpoints(self) -> list[Path]:
        """Checkpoints in the models folder."""
        folder = Path(self.models_folder) if self.models_folder else None
        if folder is None or not folder.is_dir():
            return []
        return sorted(folder.glob("*.safetensors"))


def read_settings() -> Settings:
    """Read Preferences now; offline and the cache folder take effect for this process at once."""
    values = _stored("compute") | _stored("files")
    known = {k: v for k, v in values.items() if k in Settings.__dataclass_fields__}
    settings = Settings(**known)
    if settings.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    if settings.cache_folder:
        os.environ["MSAMIL_CACHE"] = settings.cache_folder
    return settings


def _stored(group: str) -> dict[str, Any]:
    """One group of our settings; empty where napari knows no plugin settings or has not read our manifest."""
    try:
        from napari.settings import get_plugin_settings
    except ImportError:
        return {}
    try:
        found = getattr(get_plugin_settings(PLUGIN), group, None)
    except KeyError:
        return {}
    return {} if found is None else dict(found.model_dump())
