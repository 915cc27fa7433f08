"""What an installation of the service needs beside our own distributions: requirements/server.in.

Written by `make requirements` from pyproject.toml, so that the image's lock follows it. Only the
standard library is imported.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

EXTRAS = ("postgresql", "tracing")
"""Of those that an installation may want; development and demo stay out."""


def lines() -> list[str]:
    """Sorted requirements of the API and the service, with `EXTRAS`."""
    root = Path(__file__).resolve().parents[2]
    found: set[str] = set()
    for folder in (root / "protos", root):
        project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        extras = project.get("optional-dependencies", {})
        found |= {*project["dependencies"], *(r for name in EXTRAS for r in extras.get(name, ()))}
    return sorted(line for line in found if not line.startswith("modelkms"))


if __name__ == "__main__":
    print("# Made by `make requirements` from pyproject.toml: what the service's image installs.")
    print("\n".join(lines()))
