"""README's example and its commands run as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from kms_service.development.stack import DevelopmentStack
from tests.support.cli import clean_environment

pytestmark = pytest.mark.xdist_group("stack")
_README = Path(__file__).parents[2] / "README.md"


def test_sdk_example(stack: DevelopmentStack, tmp_path: Path) -> None:
    blocks = re.findall(
        r"<!-- sdk-example -->\s*```python\n(.*?)```", _README.read_text(), re.DOTALL
    )
    assert len(blocks) == 1
    code: str = blocks[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    (tmp_path / "model.onnx").write_bytes(_magika_model().read_bytes())
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        env=clean_environment(
            tmp_path, {"MODELKMS_PROFILE": str(stack.paths.profile("developer"))}
        ),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def _magika_model() -> Path:
    import magika

    (path,) = Path(magika.__file__).parent.glob("models/*/model.onnx")
    return path
