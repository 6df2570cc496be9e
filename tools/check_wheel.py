"""Look into the built wheel: one top-level package, the demo model, recipes and manifest inside, no tests."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

NEEDED = (
    "napari_msamil/napari.yaml",
    "napari_msamil/py.typed",
    "napari_msamil/data/demo.safetensors",
    "napari_msamil/training/cli.py",
    "napari_msamil/training/recipes/demo.toml",
)


def problems(wheel: Path) -> list[str]:
    """What is wrong with a wheel, one line each."""
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    found = [f"missing: {name}" for name in NEEDED if name not in names]
    if tops != {"napari_msamil"}:
        found.append(f"top-level names: {sorted(tops)}")
    on_disk = {
        p.parent.relative_to("src").as_posix() for p in Path("src").rglob("__init__.py")
    }
    on_disk |= {
        (Path("napari_msamil") / p.parent).as_posix()
        for p in Path("training").rglob("__init__.py")
    }
    packed = {
        str(Path(name).parent.as_posix())
        for name in names
        if name.endswith("__init__.py")
    }
    found += [f"package left out: {name}" for name in sorted(on_disk - packed)]
    found += [f"test in the wheel: {name}" for name in names if "/tests/" in name]
    return found


if __name__ == "__main__":
    wheel = next(Path(sys.argv[1]).glob("*.whl"))
    bad = problems(wheel)
    print(
        "\n".join(bad) or f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, complete"
    )
    sys.exit(1 if bad else 0)
