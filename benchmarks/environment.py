"""An environment for the peers' packages, made once from pinned versions."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path

from saekit.files import hash_file, home

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ROOT / "requirements" / "peers.txt"
OUTSIDE = "SAEKIT_OUTSIDE"  # names the packages of the environment that the script started in


def enter(folder: Path | None = None) -> None:
    """Run the script again inside the peers' environment; return at once if this is it.

    Parameters
    ----------
    folder : Path, optional
        Where the environment is, or will be. Below `saekit.files.home()` if left out, with the
        hash of its requirements in its name.
    """
    folder = (folder or home() / "peers" / hash_file(REQUIREMENTS)[:8]).absolute()
    if Path(sys.prefix) == folder:
        # What saekit needs and the peers do not, such as ipywidgets, is found where the script started.
        sys.path += filter(None, [os.environ.get(OUTSIDE)])
        return
    if not (folder / "complete").exists():
        _build(folder)
    # saekit itself is taken from this checkout, whichever checkout built the environment.
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    python = str(folder / "bin" / "python")
    sys.stdout.flush()
    outside = {"PYTHONPATH": os.pathsep.join(paths), OUTSIDE: sysconfig.get_path("purelib")}
    os.execve(python, [python, *sys.argv], os.environ | outside)


def _build(folder: Path) -> None:
    print(f"Building the peers' environment in {folder} (2.3 GB, a minute or two).", flush=True)
    start = time.perf_counter()
    venv.create(folder, clear=True, with_pip=True)
    torch = next(line for line in REQUIREMENTS.read_text().splitlines() if line.startswith("torch=="))
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    subprocess.run([*pip, torch], check=True)
    subprocess.run([*pip, "--no-deps", "-r", str(REQUIREMENTS)], check=True)
    (folder / "complete").touch()
    print(f"Built in {time.perf_counter() - start:.0f} seconds.", flush=True)
