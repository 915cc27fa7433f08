"""`python -m tests.mutation [PART …]`: mutants of what decides who gets a key, by mutmut.

Works on a copy of the tree outside it, since mutmut rewrites what it tests. Prints the score of
each part and its survivors; README.md beside this file explains those that are left.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
CHILDREN = "2"
_COPIED = ("kms_service", "protos", "client", "tests", "deploy", "docs", "pyproject.toml")


@dataclass(frozen=True)
class Part:
    """What is mutated, and the tests that must notice."""

    sources: tuple[str, ...]
    tests: tuple[str, ...]


PARTS = {
    "policy": Part(
        tuple(
            f"kms_service/adapters/cedar{suffix}.py"
            for suffix in ("", "_policy_set", "_request", "_canaries")
        ),
        ("tests/unit/adapters/test_cedar.py",),
    ),
    "authentication": Part(
        ("kms_service/rpc/authentication.py", "kms_service/rpc/spiffe.py"),
        ("tests/unit/rpc/test_authentication.py", "tests/unit/rpc/test_spiffe.py"),
    ),
    "lease": Part(
        tuple(
            f"kms_service/usecases/{name}.py"
            for name in ("lease_data_key", "renew_lease", "authorisation")
        ),
        tuple(
            f"tests/unit/usecases/test_{name}.py"
            for name in ("leasing", "standing", "browsing", "call_records")
        ),
    ),
    "key-transport": Part(
        ("kms_service/adapters/key_transport.py", "kms_service/adapters/key_transport_sessions.py"),
        (
            "tests/unit/test_key_transport_ends.py",
            "tests/unit/test_key_transport_service.py",
            "tests/unit/test_key_transport_sessions.py",
        ),
    ),
}


def main(names: list[str]) -> int:
    unknown = sorted(set(names) - PARTS.keys())
    if unknown:
        sys.stderr.write(
            f"error: no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}\n"
        )
        return 2
    for name in names or PARTS:
        with tempfile.TemporaryDirectory(prefix="modelkms-mutation-") as folder:
            _try(name, PARTS[name], Path(folder))
    return 0


def _try(name: str, part: Part, folder: Path) -> None:
    for entry in _COPIED:
        source = REPOSITORY / entry
        if source.is_dir():
            shutil.copytree(source, folder / entry, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, folder / entry)
    (folder / "setup.cfg").write_text(_configuration(part))
    mutmut = str(Path(sys.executable).with_name("mutmut"))
    with (folder / "mutmut.log").open("w+") as log:  # it draws a wheel that turns
        done = subprocess.run(
            [mutmut, "run", "--max-children", CHILDREN], cwd=folder, check=False, stdout=log
        )
        if done.returncode:
            log.seek(0)
            sys.stderr.write(log.read())
            done.check_returncode()
    told = subprocess.run(
        [mutmut, "results", "--all", "true"], cwd=folder, check=True, capture_output=True, text=True
    ).stdout
    outcomes = dict(line.strip().rsplit(": ", 1) for line in told.splitlines() if ": " in line)
    killed = sum(outcome in ("killed", "timeout") for outcome in outcomes.values())
    left = {mutant: outcome for mutant, outcome in outcomes.items() if outcome == "survived"}
    untested = sum(outcome == "no tests" for outcome in outcomes.values())
    sys.stdout.write(
        f"\n{name}: {killed} of {killed + len(left)} mutants killed "
        f"({killed / max(1, killed + len(left)):.1%}); no test of the part runs {untested} more\n"
    )
    for mutant in sorted(left):
        shown = subprocess.run(
            [mutmut, "show", mutant], cwd=folder, check=False, capture_output=True, text=True
        ).stdout
        changed = [
            line for line in shown.splitlines() if line[:1] in "+-" and line[1:2] not in "+-"
        ]
        sys.stdout.write("\n".join((mutant, *changed, "")) + "\n")


def _configuration(part: Part) -> str:
    def lines(key: str, values: tuple[str, ...]) -> str:
        return f"{key}=" + "\n    ".join(values)

    return "\n".join(
        (
            "[mutmut]",
            "source_paths=kms_service",
            lines("only_mutate", part.sources),
            lines("pytest_add_cli_args_test_selection", part.tests),
            lines("pytest_add_cli_args", ("-p no:cacheprovider", "-x")),
            lines("also_copy", _COPIED[1:]),
            "",
        )
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
