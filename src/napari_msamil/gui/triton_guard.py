"""Keeps a second LLVM out of the window's process.

Where OpenGL is drawn in software (virtual displays, many remote desktops and virtual machines), Mesa has loaded its
own LLVM into the process. torchvision imports triton, whose library brings another LLVM, and the process dies on
import. triton serves `torch.compile` on GPUs only, which such a machine does not use; without it torch works.
"""

from __future__ import annotations

import sys
from pathlib import Path


def keep_triton_out() -> None:
    """Make `import triton` fail politely if it would crash; call before torch is first used beside a window."""
    if "triton" not in sys.modules and _llvm_is_loaded():
        # None in sys.modules is Python's own way to say "not installed": torch then goes on without it
        sys.modules["triton"] = None  # type: ignore[assignment]


def _llvm_is_loaded() -> bool:
    """Whether a system LLVM is mapped into this process; Linux alone has this clash."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        return "libLLVM" in Path("/proc/self/maps").read_text(encoding="utf-8")
    except OSError:
        return False
