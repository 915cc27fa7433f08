"""Creating a model."""

from __future__ import annotations

from collections.abc import Mapping

from kms_service.domain.attributes import check_attributes
from kms_service.domain.catalogue import Model
from kms_service.domain.decisions import Action
from kms_service.domain.identity import Caller
from kms_service.domain.names import ModelName
from kms_service.domain.ports import Clock, Database, Transaction
from kms_service.usecases.authorisation import Gate


class CreateModel:
    def __init__(self, *, gate: Gate, database: Database, clock: Clock) -> None:
        self._gate = gate
        self._database = database
        self._clock = clock

    def __call__(self, caller: Caller, name: ModelName, labels: Mapping[str, str]) -> Model:
        """The new model.

        Raises:
            InvalidField: `labels`.
            ModelNotFoundOrDenied: not permitted, or no such project.
            ResourceExists: the id is taken.
        """
        checked = check_attributes(labels, "model.labels")
        # Policy sees the labels that are asked for: who may publish under one label only
        # cannot make a model under another.
        with self._gate.admit(caller, Action.CREATE_MODEL, name, labels=checked) as permit:

            def create(tx: Transaction) -> Model:
                permit.require(tx.projects.get(name.parent))
                model = Model(name, self._clock.now(), checked)
                tx.models.insert(model)
                permit.record()
                return model

            return self._database.transact(create)
