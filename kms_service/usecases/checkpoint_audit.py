"""Checkpoints: where all audit chains stand, signed, and kept where nobody can write twice.

    own head → told to the others → all heads → text → signed in Vault → shipped

A chain by itself cannot prove its end. What was shipped can: up to the head that it names, no
record of any chain can be cut, and none be written anew, without being found out.
"""

from __future__ import annotations

from kms_service.domain.audit import ChainHead, Checkpoint, checkpoint_name
from kms_service.domain.errors import AuditChainForked
from kms_service.domain.ports import AuditChain, CheckpointStore, Clock, Database, NoteSigner


class CheckpointAudit:
    """Called by a timer, and when the service stops; by nobody from outside."""

    def __init__(
        self,
        *,
        chain: AuditChain,
        database: Database,
        signer: NoteSigner,
        store: CheckpointStore,
        clock: Clock,
        origin: str,
    ) -> None:
        self._chain = chain
        self._database = database
        self._signer = signer
        self._store = store
        self._clock = clock
        self._origin = origin

    def __call__(self) -> Checkpoint | None:
        """What was shipped; None while there is no record.

        Raises:
            AuditChainForked: the chain stood further already: another process writes one of this
                name, or records were cut from this one.
            StateUnavailable, StateConflict, SigningKeyMisconfigured, StorageUnavailable, and
            Vault's outages: nothing was shipped; the next one covers what this one would have.
        """
        own = self._chain.head
        if own is None:
            return None
        checkpoint = Checkpoint(self._origin, self._clock.now(), self._heads(own))
        note = self._signer.sign(checkpoint.text())
        self._store.put(checkpoint_name(checkpoint.time, own.chain), note)
        return checkpoint

    def _heads(self, own: ChainHead) -> tuple[ChainHead, ...]:
        with self._database.write() as tx:
            heads = {head.chain: head for head in tx.audit_heads.list()}
            told = heads.get(own.chain)
            if told is not None and told != own and told.records >= own.records:
                raise AuditChainForked
            tx.audit_heads.put(own)
        heads[own.chain] = own
        return tuple(heads[chain] for chain in sorted(heads))
