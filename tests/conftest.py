"""What holds for every test."""

from __future__ import annotations

# grpc reads its environment when it is imported, which any test module may do first: servers that
# tests start in this process speak TLS 1.3 only, as the service does.
import kms_service.rpc.tls_environment  # noqa: F401

# isort: split
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import hypothesis
import pytest

from tests.support import postgresql, vault_servers
from tests.support.postgresql import PostgresServer
from tests.support.s3_gateway import S3Gateway, running_gateway
from tests.support.vault_servers import VaultRig

pytest_plugins = ["tests.support.secret_scan"]

# Read when onnxruntime is imported: official builds report their use to their vendor otherwise.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

# A shell without job control starts what runs in the background deaf to SIGINT and SIGQUIT
# (POSIX.1-2017, Shell 2.11), and so is what that starts: tests that interrupt would wait for it.
for _number, _usual in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGQUIT, signal.SIG_DFL),
):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _usual)

# Wall-clock deadlines of single examples say more about the machine's load than about the code;
# pytest-timeout bounds the test as a whole.
hypothesis.settings.register_profile("modelkms", deadline=None, print_blob=True)
hypothesis.settings.load_profile("modelkms")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `--dist loadgroup` a file's tests stay on one worker, unless they name another group:
    what a module fixture starts (a server, a build) is started once.
    """
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(scope="session")
def vault_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], VaultRig]]:
    """`vault_of("openbao")` is a real server, set up; started at its first use by a worker."""
    running: dict[str, VaultRig] = {}
    with ExitStack() as stack:

        def of(kind: str) -> VaultRig:
            if kind not in running:
                folder = tmp_path_factory.mktemp(kind)
                running[kind] = stack.enter_context(vault_servers.running(kind, folder))
            return running[kind]

        yield of


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A real server; started at its first use by a worker."""
    with postgresql.running() as server:
        yield server


@pytest.fixture(scope="session")
def s3_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Gateway]:
    """A real S3 server; started at its first use by a worker."""
    with running_gateway(tmp_path_factory.mktemp("s3")) as gateway:
        yield gateway
