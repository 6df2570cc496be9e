"""The command `msamil`, also as `python -m napari_msamil`."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from napari_msamil.cli import STOPPED, main


def run() -> NoReturn:
    """Run the command line and end; after Ctrl-C without the second that taking torch apart would cost."""
    code = main()
    if code == STOPPED:  # everything is closed and said
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise SystemExit(code)


if __name__ == "__main__":
    run()
