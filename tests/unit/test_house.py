"""The house is in order: what must hold of the tree itself, whatever the code does."""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import os
import re
import socket
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.tools import REPOSITORY

PROMISED_TARGETS = {
    *("setup", "demo", "test", "test-faults", "test-vault", "fuzz"),
    *("dist", "check", "bench", "protos", "dev", "clean"),
}
OUR_PACKAGES = {
    "kms_service": "modelkms-server",
    "modelkms": "modelkms",
    "modelkms_api": "modelkms-api",
}
LOCKS = ("uv", "go", "development", "fuzz", "mutation", "torch", "server")

# Written in two halves, so that this file does not hold what it looks for.
PATHS_OF_A_MACHINE = [
    "/wo" + "rk/",
    "/ro" + "ot/",
    "/ho" + "me/(?!ana/)[a-z]+/",  # Ana lives in the guides
    "/Us" + "ers/[a-z]+/",
]
REGISTRY_HOSTS = [
    "py" + r"pi\.org",
    "python" + r"hosted\.org",
    "proxy" + r"\.golang\.org",
    "sum" + r"\.golang\.org",
    "npm" + r"js\.(org|com)",
    "deb" + r"\.debian\.org",
    "cra" + r"tes\.io",
    "maven" + r"\.org",
]
FORBIDDEN = re.compile(
    "|".join([*(rf"(?<![\w.$}}~-]){path}" for path in PATHS_OF_A_MACHINE), *REGISTRY_HOSTS])
)


def tree_files() -> list[Path]:
    """Files of the tree: tracked, or new and not ignored; in an unpacked archive all but builds."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        check=False,
    )
    if listing.returncode == 0:
        names = [os.fsdecode(name) for name in listing.stdout.split(b"\0") if name]
        return [path for name in names if (path := REPOSITORY / name).is_file()]
    built = {".venv", ".modelkms-dev", "dist", "__pycache__", ".git"}
    return [
        path
        for path in REPOSITORY.rglob("*")
        if path.is_file()
        and not any(part in built or part.endswith("_cache") for part in path.parts)
    ]


def test_no_file_names_a_machine_or_a_registry() -> None:
    found = [
        f"{path.relative_to(REPOSITORY)}:{number}: {match[0]}"
        for path in tree_files()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if (match := FORBIDDEN.search(line))
    ]
    assert found == []


@pytest.mark.parametrize("lock", LOCKS)
def test_every_requirement_is_exact_and_hashed(lock: str) -> None:
    for block in requirement_blocks(lock):
        assert re.match(r"[a-z0-9.\[\]-]+==\S+", block), block
        assert "--hash=sha256:" in block, block
        assert "://" not in block, block


@pytest.mark.parametrize("lock", LOCKS)
def test_locks_hold_what_their_sources_ask_for(lock: str) -> None:
    locked: dict[str, list[str]] = {}
    for block in requirement_blocks(lock):
        requirement = Requirement(block.split("--hash", 1)[0])
        version = str(requirement.specifier).removeprefix("==")
        locked.setdefault(canonicalize_name(requirement.name), []).append(version)

    for line in (REPOSITORY / "requirements" / f"{lock}.in").read_text().splitlines():
        if line and not line.startswith("#"):
            asked = Requirement(line)
            versions = locked.get(canonicalize_name(asked.name), [])
            assert any(asked.specifier.contains(version) for version in versions), (
                f"{line}: locked {versions}; run: make requirements"
            )


def requirement_blocks(lock: str) -> list[str]:
    """One string a requirement, its continuation lines joined, comments left out."""
    text = (REPOSITORY / "requirements" / f"{lock}.txt").read_text()
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    blocks = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [block for block in blocks if block.strip()]


def test_what_the_distributions_need_is_locked() -> None:
    locked = {
        canonicalize_name(Requirement(block.split("--hash", 1)[0]).name)
        for lock in ("development", "torch")
        for block in requirement_blocks(lock)
    }
    ours = {"modelkms", "modelkms-api", "modelkms-server"}
    for folder in (".", "client", "protos"):
        project = pyproject(folder)["project"]
        extras = project.get("optional-dependencies", {}).values()
        for line in [*project["dependencies"], *(line for extra in extras for line in extra)]:
            name = canonicalize_name(Requirement(line).name)
            assert name in locked | ours, f"{folder}: {line}"


def test_the_three_distributions_have_one_version_and_licence() -> None:
    packages = {".": "kms_service", "client": "modelkms", "protos": "modelkms_api"}
    versions = {pyproject(folder)["project"]["version"] for folder in packages}
    assert len(versions) == 1
    (version,) = versions
    for folder, package in packages.items():
        init = (REPOSITORY / folder / package / "__init__.py").read_text()
        assert f'__version__ = "{version}"' in init
        licence = (REPOSITORY / folder / "LICENSE").read_text()
        assert licence == (REPOSITORY / "LICENSE").read_text()
        for line in pyproject(folder)["project"]["dependencies"]:
            requirement = Requirement(line)
            if requirement.name.startswith("modelkms"):
                assert str(requirement.specifier) == f"=={version}", line
    changelog = (REPOSITORY / "CHANGELOG.md").read_text()
    assert f"## [{version}]" in changelog


@pytest.mark.parametrize(
    ("folder", "package"),
    [(".", "kms_service"), ("client", "modelkms"), ("protos", "modelkms_api")],
)
def test_dependencies_are_those_that_are_imported(folder: str, package: str) -> None:
    """Nothing undeclared is imported, nothing declared is idle (an extra counts as declared)."""
    project = pyproject(folder)["project"]
    required = {Requirement(line).name for line in project["dependencies"]}
    extras = project.get("optional-dependencies", {}).values()
    declared = required | {Requirement(line).name for extra in extras for line in extra}
    providers = {
        canonicalize_name(name)
        for path in (REPOSITORY / folder / package).rglob("*.py")
        for module in imported_modules(path)
        if module.split(".")[0] not in sys.stdlib_module_names | TYPING_ONLY
        for name in distributions_of(module)
    }
    assert providers - {OUR_PACKAGES[package]} - declared == set(), "imported, not declared"
    assert required - providers == set(), "declared, not imported"


TYPING_ONLY = {"_typeshed"}
"""Known to type checkers, imported by nobody (typeshed, "stdlib/_typeshed")."""


def distributions_of(module: str) -> list[str]:
    top = module.split(".")[0]
    if top == "google":  # shared by several: told apart by the next part
        shared = "protobuf" if module.startswith("google.protobuf") else "googleapis-common-protos"
        return [shared]
    if top == "opentelemetry":
        parts = {"sdk": "opentelemetry-sdk", "exporter": "opentelemetry-exporter-otlp-proto-http"}
        return [parts.get(module.partition(".")[2].split(".")[0], "opentelemetry-api")]
    return [OUR_PACKAGES[top]] if top in OUR_PACKAGES else installed_distributions()[top]


@functools.cache
def installed_distributions() -> Mapping[str, list[str]]:
    """Names of distributions by the packages they provide; ours are editable and not listed."""
    return importlib.metadata.packages_distributions()


def pyproject(folder: str) -> dict[str, dict[str, dict[str, list[str]]]]:
    return tomllib.loads((REPOSITORY / folder / "pyproject.toml").read_text())


def test_make_help_lists_every_target() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    phony = set(re.findall(r"^\.PHONY: (\S+)", makefile, re.MULTILINE))
    helped = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    listed = set(re.findall(r"^  make (\S+) +\S", helped.stdout, re.MULTILINE))
    assert listed == phony - {"check-stubs", "stubs", "uv"}  # these serve the others
    assert listed >= PROMISED_TARGETS


def test_every_make_command_in_the_documents_exists() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    for path in documents():
        for target in re.findall(r"`make ([a-z][a-z-]*)`|^make ([a-z][a-z-]*)", path.read_text()):
            assert "".join(target) in targets, f"{path.relative_to(REPOSITORY)}: make {target}"


def test_links_between_documents_lead_somewhere() -> None:
    broken = [
        f"{path.relative_to(REPOSITORY)}: {target}"
        for path in documents()
        for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text())
        if not target.startswith(("https://", "#"))
        and not (path.parent / target.split("#")[0]).exists()
    ]
    assert broken == []


@pytest.mark.parametrize("package", ["client", "kms_service"])
def test_files_that_comments_and_messages_send_to_are_there(package: str) -> None:
    sent_to = {
        target
        for path in (REPOSITORY / package).rglob("*.py")
        for target in re.findall(r"\b(?:deploy|docs)/[\w./-]*\w", path.read_text())
    }
    assert sent_to, "nothing found: the pattern is wrong"
    assert [target for target in sorted(sent_to) if not list(REPOSITORY.glob(f"{target}*"))] == []


def documents() -> list[Path]:
    return [path for path in tree_files() if path.suffix == ".md"]


def test_the_domain_imports_only_itself_the_shared_layouts_and_the_standard_library() -> None:
    allowed = sys.stdlib_module_names | {"modelkms_api.encoding", "modelkms_api.key_transport"}
    no_world = {"asyncio", "io", "os", "pathlib", "random", "socket", "subprocess", "time"}
    for path in (REPOSITORY / "kms_service" / "domain").glob("*.py"):
        for module in imported_modules(path):
            if not module.startswith("kms_service.domain"):
                assert module in allowed or module.split(".")[0] in allowed, (
                    f"{path.name}: {module}"
                )
                assert module.split(".")[0] not in no_world, f"{path.name}: {module}"


# Which part of the service may import a product; the client's officer has a Vault login of its own.
PRODUCTS: dict[str, str | tuple[str, ...]] = {
    "alembic": "adapters/database/",
    "cedarpy": "adapters/cedar",
    "obstore": ("adapters/bucket_storage", "adapters/checkpoint_store"),
    "hvac": ("adapters/vault", "development/openbao", "development/vault_setup"),
    "pysqlite3": "adapters/database/",
    "sqlalchemy": "adapters/database/",
}


@pytest.mark.parametrize("product", PRODUCTS)
def test_a_product_is_known_to_one_adapter(product: str) -> None:
    service = REPOSITORY / "kms_service"
    importers = {
        path.relative_to(service).as_posix()
        for path in service.rglob("*.py")
        if any(module.split(".")[0] == product for module in imported_modules(path))
    }
    assert importers, f"nothing imports {product} any more: drop the dependency"
    assert {name for name in importers if not name.startswith(PRODUCTS[product])} == set()


def imported_modules(path: Path) -> list[str]:
    modules = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            modules.append(node.module or "")
    return modules


def test_ci_can_be_run() -> None:
    assert os.access(REPOSITORY / ".ci" / "run", os.X_OK)
    subprocess.run(["bash", "-n", REPOSITORY / ".ci" / "run"], check=True)


def test_what_security_says_is_proved_has_a_test() -> None:
    """Each fault row named in the threat model has a test of its name; each file named exists."""
    security = (REPOSITORY / "SECURITY.md").read_text()
    model = security.split("## Threat model")[1].split("\n## ")[0]
    proofs = [row.rsplit("|", 2)[1] for row in model.splitlines() if row.startswith("| **")]
    assert len(proofs) > 10
    claimed = {int(number) for proof in proofs for number in re.findall(r"F(\d\d)", proof)}
    there = names_of_tests()
    for row in model.splitlines():
        if row.startswith("| **"):
            cells = [cell.strip() for cell in row.strip("|").split("|")]
            assert len(cells) == len(("who", "has", "wants", "gets", "stops", "proof")), row
            assert all(cells), row
    for proof in proofs:
        named = re.findall(r"`(test_\w+)`", proof)
        assert named, f"no test is named: {proof}"
        assert set(named) <= there, sorted(set(named) - there)
        for first, last in re.findall(r"F(\d\d) to F(\d\d)", proof):
            claimed |= set(range(int(first), int(last) + 1))
        for path in re.findall(r"`(tests/[^`]+)`", proof):
            assert (REPOSITORY / path).exists(), path
    unproved = sorted(claimed - fault_rows_with_tests())
    assert unproved == [], [f"F{number:02}" for number in unproved]


def names_of_tests() -> set[str]:
    sources = (path.read_text() for path in (REPOSITORY / "tests").rglob("test_*.py"))
    return {name for source in sources for name in re.findall(r"def (test_\w+)\(", source)}


def fault_rows_with_tests() -> set[int]:
    sources = (path.read_text() for path in (REPOSITORY / "tests").rglob("test_*.py"))
    return {
        int(number) for source in sources for number in re.findall(r"def test_f(\d\d)_", source)
    }


def test_unit_tests_cannot_reach_a_network() -> None:
    # pytest-socket warns before it raises SocketBlockedError; warnings are errors here.
    with pytest.raises(UserWarning, match="tried to use socket"):
        socket.socket(socket.AF_INET)
    left, right = socket.socketpair()
    left.close()
    right.close()
