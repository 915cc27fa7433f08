"""A process that works on rewraps until none is left: what a replica does, without its edges.

python -m tests.bench.rewrap_worker URL THREADS VAULT CA_FILE ROLE_ID_FILE SECRET_ID_FILE
"""

from __future__ import annotations

import gc
import sys
import tempfile
import threading
from pathlib import Path

from kms_service.adapters.audit_log import FileAuditLog
from kms_service.adapters.clock import LogicalClock
from kms_service.adapters.database import SqlDatabase
from kms_service.adapters.vault import VaultMasterKeys
from kms_service.adapters.vault_session import VaultSession, VaultSettings
from kms_service.usecases.rewrap_data_keys import RewrapWorker
from tests.support.usecase_fakes import RewrapCounts


def main() -> None:
    url, threads, address, *files = sys.argv[1:]
    ca_file, role_id_file, secret_id_file = map(Path, files)
    database = SqlDatabase(url)
    clock = LogicalClock(database, wall=database.wall)
    session = VaultSession(
        VaultSettings(
            address=address,
            ca_file=ca_file,
            namespace=None,
            approle_mount="approle",
            role_id_file=role_id_file,
            secret_id_file=secret_id_file,
            token_file=None,
            request_timeout_s=10.0,
            connections=8,
        )
    )
    with tempfile.TemporaryDirectory(prefix="modelkms-bench-") as folder:
        worker = RewrapWorker(
            rewraps=database.rewraps,
            rewrapper=VaultMasterKeys(session, "transit"),
            audit=FileAuditLog(Path(folder) / "audit", clock.now),
            clock=clock,
            counters=RewrapCounts(),
        )
        gc.collect()
        gc.freeze()  # as a serving process does
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        running = [
            threading.Thread(target=worker, args=(lambda: False,)) for _ in range(int(threads))
        ]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()


if __name__ == "__main__":
    main()
