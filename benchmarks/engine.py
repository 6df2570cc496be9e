"""The engine against the plain loop a user would write, against a peer, and against itself: ratios in one run.

    python benchmarks/engine.py SEED_SLIDE --rows reading encoding … [--work FOLDER] [--out engine.json]

SEED_SLIDE is a small real slide (OpenSlide's CMU-1-Small-Region.svs); a JPEG pyramid of 20 480 × 20 480 with levels
1, 4 and 16 (as Aperio scanners write) is made of it once. Sides of a row take turns; medians are reported. Rows are
added to what the JSON file holds already, so that each can be run alone. For the peer row, `engine_peer.py` runs in
an environment of its own (--peer-python) on the same file. Low-rank attention has a file of its own, `attention.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import engine_behaviour as behaviour
import engine_speed as speed
import torch
from engine_slide import Setting

if TYPE_CHECKING:
    from collections.abc import Callable

ROWS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "reading": speed.reading,
    "encoding": speed.encoding,
    "end_to_end": speed.end_to_end,
    "overlap": speed.overlap,
    "edit": behaviour.edit,
    "cancel": behaviour.cancel,
    "ctrl_c": behaviour.ctrl_c,
    "memory": behaviour.memory,
    "cluster": behaviour.cluster,
    "peer": speed.peer,
}


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    features = torch.cpu.get_capabilities()
    wanted = ("avx2", "avx512", "avx512_bf16", "amx_bf16")
    return {
        "processors": os.cpu_count(),
        "instructions": [name for name in wanted if features.get(name)],
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch threads": torch.get_num_threads(),
    }


def main() -> None:
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=kind)
    add = parser.add_argument
    add("seed", type=Path)
    add("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    add("--out", type=Path, default=Path("engine.json"))
    add("--work", type=Path, default=Path(tempfile.gettempdir()) / "msamil-engine")
    add("--repeats", type=int, default=3)
    add("--patches", type=int, default=84, help="of the end-to-end row, about")
    add("--share", type=float, default=0.2, help="part of the slide that is read")
    add("--slides", type=int, default=8, help="of the cluster row")
    add("--trials", type=int, default=3, help="of the ctrl_c row, each way")
    add("--compile", action="store_true", help="measure torch.compile too")
    add("--peer-python", type=Path, help="an interpreter with lazyslide")
    add("--peer-side", type=int, default=4096)
    add("--peer-options", default="", help="of engine_peer.py, as one word")
    add("--peak", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    setting = Setting(
        args.seed, args.work, args.repeats, args.patches, args.share, args.slides, args.trials, args.compile,
        args.peer_python, args.peer_side, args.peer_options,
    )  # fmt: skip
    setting.work.mkdir(parents=True, exist_ok=True)
    if args.peak:
        print(json.dumps(behaviour.peak_of(args.peak, setting)))
        return
    report = json.loads(args.out.read_text("utf-8")) if args.out.exists() else {}
    report["machine"] = machine()
    for name in args.rows:
        found = ROWS[name](setting)
        key = f"{name} {args.peer_options}".strip() if name == "peer" else name
        report[key] = found
        text = json.dumps(report, indent=1, ensure_ascii=False)
        args.out.write_text(text, encoding="utf-8")
        print(key, json.dumps(found, indent=1, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
