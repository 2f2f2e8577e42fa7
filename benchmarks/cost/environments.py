"""An environment for each subject, made once, so that none is measured beside another."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from subjects import ENVIRONMENTS, ROOT

FOLDER = ROOT / ".venv-bench"
_CONSTRAINTS = ROOT / "constraints.txt"


def python_of(name: str, folder: Path = FOLDER) -> Path:
    """The interpreter of an environment, which is made if it is not there or not what it should be."""
    place = folder / name
    python = place / "bin" / "python"
    packages = ENVIRONMENTS[name]
    ours = (ROOT / "pyproject.toml").read_text() if str(ROOT) in packages else ""
    wanted = "\n".join((sys.version, *packages, _CONSTRAINTS.read_text(), ours))
    stamp, digest = place / ".made-of", hashlib.sha256(wanted.encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == digest and python.exists():
        return python
    print(f"making the environment {place.relative_to(ROOT)} (once; some hundred MB)", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    # What is tested is what is installed; our own code as it is here.
    arguments = [
        item for package in packages for item in (("--editable", package) if package == str(ROOT) else (package,))
    ]
    subprocess.run([*pip, "--constraint", str(_CONSTRAINTS), *arguments], check=True, cwd=ROOT)
    stamp.write_text(digest)
    return python
