"""`python -m napari_msamil` is `msamil`."""

from __future__ import annotations

from napari_msamil.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
