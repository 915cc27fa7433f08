"""Runs targets under atheris (libFuzzer), each in a process of its own.

    python -m tests.fuzz [--seconds S | --runs N] [--target NAME] [--corpus FOLDER]

What was found interesting stays in the corpus, outside the tree, so that the next run begins there.
A defect ends with exit code 1 and an input that shows it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from tests.support.tools import cache_folder

_INTERRUPTED = 72
"""libFuzzer's, after Ctrl-C."""
NAMES = ("header", "floe", "archive", "archive-names", "artifact", "key-answer")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    bound = parser.add_mutually_exclusive_group()
    bound.add_argument("--seconds", type=int, default=60, help="for each target")
    bound.add_argument("--runs", type=int, help="for each target")
    parser.add_argument("--target", choices=NAMES, action="append")
    parser.add_argument("--corpus", type=Path, default=cache_folder() / "fuzz-corpus")
    parser.add_argument("--inside", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("options", nargs="*", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inside:
        _fuzz(asked.inside, asked.options)
        return 0
    failed = []
    for name in asked.target or NAMES:
        limit = f"-runs={asked.runs}" if asked.runs else f"-max_total_time={asked.seconds}"
        if not _run(name, asked.corpus / name, limit):
            failed.append(name)
    for name in failed:
        print(f"error: {name} has a defect; the input is below {asked.corpus / name}-found")
    return bool(failed)


def _run(name: str, corpus: Path, limit: str) -> bool:
    found = corpus.with_name(corpus.name + "-found")
    for folder in (corpus, found):
        folder.mkdir(parents=True, exist_ok=True)
    print(f"--- {name}", flush=True)
    options = [limit, "-max_len=65536", "-print_final_stats=1", "-rss_limit_mb=2048", "-timeout=20"]
    command = [sys.executable, "-m", "tests.fuzz", "--inside", name, "--"]
    done = subprocess.run(
        [*command, *options, f"-artifact_prefix={found}/", str(corpus)], check=False
    )
    return done.returncode in (0, _INTERRUPTED)


def _fuzz(name: str, options: list[str]) -> None:
    """In the child: never returns, libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["modelkms", "modelkms_api"]):
        from tests.fuzz.targets import TARGETS

    target, corpus = TARGETS[name], Path(options[-1])
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    atheris.Setup([sys.argv[0], *options], target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
