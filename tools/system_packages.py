"""Install what Qt and OpenGL need from the system, where that may be done; else name it exactly.

Run as root on Debian or Ubuntu it installs; as an ordinary user it prints the one command to run.
Other systems bring these libraries themselves.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys

QT = (
    "libegl1",
    "libgl1",
    "libopengl0",
    "libxkbcommon-x11-0",
    "libdbus-1-3",
    "libfontconfig1",
    "libxcb-cursor0",
    "libxcb-icccm4",
    "libxcb-image0",
    "libxcb-keysyms1",
    "libxcb-randr0",
    "libxcb-render-util0",
    "libxcb-shape0",
    "libxcb-xinerama0",
    "libxcb-xfixes0",
    "libgl1-mesa-dri",
)
DISPLAY = ("xvfb", "fonts-dejavu-core")


def missing(packages: tuple[str, ...]) -> list[str]:
    """The packages dpkg does not know as installed."""
    query = ["dpkg-query", "-W", "-f", "${Package} ${Status}\n", *packages]
    found = subprocess.run(query, capture_output=True, text=True, check=False).stdout
    have = {
        line.split()[0]
        for line in found.splitlines()
        if line.endswith("install ok installed")
    }
    return [name for name in packages if name not in have]


def main() -> int:
    """Install or name the missing packages; never fails a run that may work without them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--display", action="store_true", help="also a virtual display, for tests"
    )
    wanted = QT + (DISPLAY if parser.parse_args().display else ())
    if not sys.platform.startswith("linux") or not shutil.which("dpkg-query"):
        return 0
    todo = missing(wanted)
    if not todo:
        return 0
    command = ["apt-get", "install", "-y", "--no-install-recommends", *todo]
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        print(
            "These system packages are missing; a window needs them:", file=sys.stderr
        )
        print("  sudo " + " ".join(command), file=sys.stderr)
        return 0
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update", "-qq"], check=False, env=env)
    return subprocess.run(
        [*command, "-qq"], check=False, env=env, stdout=subprocess.DEVNULL
    ).returncode


if __name__ == "__main__":
    raise SystemExit(main())
