"""What the use cases need of the world: small Protocols, named for what is wanted.

Adapters raise only errors of `domain.errors`: Unavailable, Throttled, Conflict, Corrupt and
WrongState families; "not there" is `None` where it is an ordinary answer.
"""

from kms_service.domain.ports.access import PolicyEngine, PolicyQuestions, TokenVerifier
from kms_service.domain.ports.artifacts import ArtifactStore, ArtifactWriter
from kms_service.domain.ports.audit import (
    AuditChain,
    AuditLog,
    CheckpointPlace,
    CheckpointStore,
    NoteSigner,
)
from kms_service.domain.ports.calls import Clock, Liveness
from kms_service.domain.ports.catalogue import (
    AliasTable,
    ModelTable,
    Page,
    ProjectTable,
    VersionTable,
)
from kms_service.domain.ports.database import Database, Transaction, Wake
from kms_service.domain.ports.key_transport import (
    ClientKey,
    EncryptedDataKey,
    KeyAnswerBinding,
    KeyTransport,
)
from kms_service.domain.ports.leases import EndedLeaseTable, LeaseFilter, LeaseTable, Revoked
from kms_service.domain.ports.master_keys import MasterKeys, MasterKeyState, Tombstones, Unwrapping
from kms_service.domain.ports.records import AuditHeadTable, DecisionTable
from kms_service.domain.ports.rewrapping import Rewrapper, Rewraps
from kms_service.domain.ports.standing import BackupTable, BlockTable, FreezeTable, TrimTable

__all__ = [
    "AliasTable",
    "ArtifactStore",
    "ArtifactWriter",
    "AuditChain",
    "AuditHeadTable",
    "AuditLog",
    "BackupTable",
    "BlockTable",
    "CheckpointPlace",
    "CheckpointStore",
    "ClientKey",
    "Clock",
    "Database",
    "DecisionTable",
    "EncryptedDataKey",
    "EndedLeaseTable",
    "FreezeTable",
    "KeyAnswerBinding",
    "KeyTransport",
    "LeaseFilter",
    "LeaseTable",
    "Liveness",
    "MasterKeyState",
    "MasterKeys",
    "ModelTable",
    "NoteSigner",
    "Page",
    "PolicyEngine",
    "PolicyQuestions",
    "ProjectTable",
    "Revoked",
    "Rewrapper",
    "Rewraps",
    "TokenVerifier",
    "Tombstones",
    "Transaction",
    "TrimTable",
    "Unwrapping",
    "VersionTable",
    "Wake",
]
