"""`policy test`: a policy set against the cases beside it, without a service."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from kms_service.adapters.cedar import CedarPolicyEngine, failures
from kms_service.adapters.cedar_canaries import CanaryCase, CanaryFile
from kms_service.adapters.cedar_policy_set import PolicySetRefused, read_policy_files
from kms_service.domain.errors import ConfigurationError

_CASES = "*.cases.json"


def try_cases(path: Path) -> tuple[int, list[str]]:
    """How many cases there are (canaries included), and what is wrong with those that fail.

    Args:
        path: the set's folder, or any file in it.

    Raises:
        ConfigurationError: the set would be refused, or a file of cases cannot be read.
    """
    folder = path if path.is_dir() else path.parent
    try:
        policies = CedarPolicyEngine.candidate(read_policy_files(folder), None)
    except PolicySetRefused as error:
        raise ConfigurationError(f"{folder}: {error}") from error
    cases = list(policies.canaries.cases)
    for file in sorted(folder.glob(_CASES)):
        cases += _read(file)
    return len(cases), list(failures(policies, cases))


def _read(file: Path) -> tuple[CanaryCase, ...]:
    try:
        return CanaryFile.model_validate_json(file.read_text()).cases
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file}: cannot be read") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigurationError(f"{file}: {where}: {first['msg']}") from error
