"""Memory after each of many small slides in one process: it must not grow.

python benchmarks/growth.py SLIDE MODEL [--slides 200]
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
from pathlib import Path

import psutil

from napari_msamil.batch import BatchOptions, classify_many
from napari_msamil.progress import finish


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("slide", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--slides", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("growth.json"))
    args = parser.parse_args()
    process, sizes = psutil.Process(), []
    for i in range(args.slides):
        with tempfile.TemporaryDirectory() as folder:
            options = BatchOptions(
                output=Path(folder),
                model=str(args.model),
                use_cache=False,
                patches="tissue",
            )
            assert finish(classify_many([args.slide], options)).done == 1
        gc.collect()
        sizes.append(process.memory_info().rss / 2**20)
        if i % 20 == 19:
            print(i + 1, f"{sizes[-1]:.0f} MB", flush=True)
    third = len(sizes) // 3
    early, late = sorted(sizes[third : 2 * third]), sorted(sizes[2 * third :])
    summary = {
        "slides": len(sizes), "after the first MB": sizes[0], "median of the middle third MB": early[third // 2],
        "median of the last third MB": late[len(late) // 2],
    }  # fmt: skip
    print(json.dumps(summary, indent=1))
    args.out.write_text(json.dumps({**summary, "MB": sizes}), encoding="utf-8")


if __name__ == "__main__":
    main()
