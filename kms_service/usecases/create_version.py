"""Beginning a version: its number, its uid, and its data key for the one who publishes it."""

from __future__ import annotations

import re
import secrets
from datetime import timedelta

from modelkms_api.key_transport import PURPOSE_PUBLISH

from kms_service.domain.binding import data_key_context
from kms_service.domain.catalogue import Model, Project, Version, VersionState, WrappedDataKey
from kms_service.domain.decisions import Action
from kms_service.domain.errors import InvalidField
from kms_service.domain.identity import Caller
from kms_service.domain.names import ModelName, VersionName
from kms_service.domain.ports import (
    ClientKey,
    Clock,
    Database,
    KeyAnswerBinding,
    KeyTransport,
    Liveness,
    MasterKeys,
    Transaction,
)
from kms_service.domain.secret import SecretBytes
from kms_service.usecases.answers import CreatedVersion, VersionView
from kms_service.usecases.authorisation import Gate, Permit
from kms_service.usecases.catalogue_lookup import labels_of
from kms_service.usecases.standing import require_not_frozen
from kms_service.usecases.version_records import state_of

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class CreateVersion:
    def __init__(
        self,
        *,
        gate: Gate,
        database: Database,
        master_keys: MasterKeys,
        transport: KeyTransport,
        clock: Clock,
    ) -> None:
        self._gate = gate
        self._database = database
        self._master_keys = master_keys
        self._transport = transport
        self._clock = clock

    def __call__(
        self,
        caller: Caller,
        parent: ModelName,
        request_id: str,
        client_key: ClientKey,
        *,
        liveness: Liveness,
    ) -> CreatedVersion:
        """A PENDING version and its data key. The same request id of the same publisher gives
        the same version and data key, encrypted to the client key of this request.

        Raises:
            InvalidField: `request_id` is not a lower-case UUID.
            ModelNotFoundOrDenied: not permitted, no such project, or no such model and not
                permitted to create it.
            RecipientKeyInvalid: `client_key`; Vault was not called.
            VersionNotPending, VersionDestroyed: the request id made a version that is no longer
                PENDING.
            ProjectFrozen: no data key is issued.
            MasterKeyMisconfigured, KeyRecordCorrupt, WrappingVersionUnusable, and outages.
            DeadlineExceeded.
        """
        if _UUID.fullmatch(request_id) is None:
            raise InvalidField("request_id", "must be a UUID of 36 lower-case characters")
        publisher = caller.principal.id

        with self._gate.admit(
            caller, Action.CREATE_VERSION, parent, suite=client_key.suite
        ) as permit:
            if permit.found.model is None:
                permit.demand(Action.CREATE_MODEL, parent)
            project = permit.require(permit.found.project)
            with self._database.read() as tx:
                earlier = tx.versions.get_by_request(parent, publisher, request_id)
            if earlier is not None:
                earlier.require_pending()
            self._transport.check(client_key)
            liveness.check()
            if earlier is not None:
                return self._answer_again(permit, caller, project, earlier, client_key, liveness)

            uid = secrets.token_hex(16)
            data_key, wrapped = self._master_keys.generate_data_key(
                project.master_key, data_key_context(parent, uid)
            )
            try:
                version = self._insert(permit, caller, parent, request_id, uid, wrapped)
                if version.uid == uid:
                    liveness.check()
                    return self._answer(version, data_key, caller, client_key)
            finally:
                data_key.wipe()
            # Another call with this request id was faster; ours gives what it made.
            return self._answer_again(permit, caller, project, version, client_key, liveness)

    def _insert(
        self,
        permit: Permit,
        caller: Caller,
        parent: ModelName,
        request_id: str,
        uid: str,
        wrapped: WrappedDataKey,
    ) -> Version:
        """The new version, stored and recorded; or the one this request id made meanwhile."""
        publisher, now = caller.principal.id, self._clock.now()

        def create(tx: Transaction) -> Version:
            earlier = tx.versions.get_by_request(parent, publisher, request_id)
            if earlier is not None:
                earlier.require_pending()
                return earlier
            model = tx.models.get(parent)
            # Vault took its time: what was permitted then must be permitted now.
            if model is None:
                permit.demand(Action.CREATE_MODEL, parent)
            permit.demand(Action.CREATE_VERSION, parent, labels=model.labels if model else {})
            permit.require_unblocked(tx)
            require_not_frozen(tx, parent.parent)
            if model is None:
                tx.models.insert(Model(parent, now))
                permit.note(model_created="yes")
            version = Version(
                name=VersionName(parent.project, parent.model, tx.versions.next_number(parent)),
                uid=uid,
                state=VersionState.PENDING,
                publisher=publisher,
                request_id=request_id,
                artifact_id=secrets.token_hex(16),
                wrapped_key=wrapped,
                create_time=now,
            )
            tx.versions.insert(version)
            # The key is issued on the strength of this record, so it is durable first. Should
            # the commit fail then, the gate records that too.
            self._record(permit, version)
            return version

        return self._database.transact(create)

    def _answer_again(
        self,
        permit: Permit,
        caller: Caller,
        project: Project,
        version: Version,
        client_key: ClientKey,
        liveness: Liveness,
    ) -> CreatedVersion:
        context = data_key_context(version.name.parent, version.uid)
        data_key = self._master_keys.unwrap(project.master_key, version.wrapped_key, context)
        try:
            with self._database.read() as tx:
                version = permit.require(tx.versions.get(version.name))
                labels = labels_of(tx, version.name)
                permit.require_unblocked(tx)
                require_not_frozen(tx, version.name.parent.parent)
            version.require_pending()
            permit.demand(Action.CREATE_VERSION, version.name, labels=labels)
            liveness.check()
            permit.note(repeated="yes")
            self._record(permit, version)
            return self._answer(version, data_key, caller, client_key)
        finally:
            data_key.wipe()

    def _record(self, permit: Permit, version: Version) -> None:
        permit.record(
            **state_of(version),
            artifact_id=version.artifact_id,
            master_key_version=version.wrapped_key.master_key_version,
        )

    def _answer(
        self, version: Version, data_key: SecretBytes, caller: Caller, client_key: ClientKey
    ) -> CreatedVersion:
        binding = KeyAnswerBinding(
            purpose=PURPOSE_PUBLISH,
            lease="",
            version_uid=version.uid,
            pin=b"",
            lease_duration=timedelta(0),
        )
        encrypted = self._transport.encrypt(data_key, caller.principal.id, client_key, binding)
        return CreatedVersion(VersionView(version, ()), encrypted)
