"""Looking at projects, models, versions and aliases. What the caller may not see is left out of
lists, and otherwise not found."""

from __future__ import annotations

from collections.abc import Mapping

from kms_service.domain.catalogue import Alias, Model, Project
from kms_service.domain.decisions import AccessRequest, Action, Resource
from kms_service.domain.identity import Caller
from kms_service.domain.names import ModelName, ProjectName, VersionName
from kms_service.domain.ports import Clock, Database, Page, PolicyEngine
from kms_service.usecases.answers import VersionView
from kms_service.usecases.authorisation import Gate, is_blocked
from kms_service.usecases.paging import check_page_size, visible_page


class BrowseCatalogue:
    def __init__(
        self, *, gate: Gate, database: Database, policy: PolicyEngine, clock: Clock
    ) -> None:
        self._gate = gate
        self._database = database
        self._policy = policy
        self._clock = clock

    # --- one ---------------------------------------------------------------------------------

    def get_project(self, caller: Caller, name: ProjectName) -> Project:
        """
        Raises:
            ModelNotFoundOrDenied: missing, or not permitted.
        """
        with self._gate.admit(caller, Action.GET_PROJECT, name) as permit:
            project = permit.require(permit.found.project)
            permit.record()
            return project

    def get_model(self, caller: Caller, name: ModelName) -> Model:
        """
        Raises:
            ModelNotFoundOrDenied: missing, or not permitted.
        """
        with self._gate.admit(caller, Action.GET_MODEL, name) as permit:
            model = permit.require(permit.found.model)
            permit.record()
            return model

    def get_version(self, caller: Caller, name: VersionName) -> VersionView:
        """
        Raises:
            ModelNotFoundOrDenied: missing, or not permitted.
        """
        with self._gate.admit(caller, Action.GET_VERSION, name) as permit:
            version = permit.require(permit.found.version)
            permit.record()
            return VersionView(version, permit.found.aliases)

    # --- many --------------------------------------------------------------------------------

    def list_projects(self, caller: Caller, page_size: int, page_token: str) -> Page[Project]:
        """The projects that the caller may see, by name; none is no error.

        Raises:
            InvalidField: `page_size` or `page_token`.
        """
        size = check_page_size(page_size)
        with self._database.read() as tx:
            blocked = is_blocked(tx, caller, self._clock)
            page = visible_page(
                tx.projects.list,
                lambda project: (
                    self._may(caller, Action.GET_PROJECT, project.name, {}) and not blocked
                ),
                size,
                page_token,
            )
        self._gate.record_listing(caller, "ListProjects", "projects", len(page.items))
        return page

    def list_models(
        self, caller: Caller, parent: ProjectName, page_size: int, page_token: str
    ) -> Page[Model]:
        """The project's models that the caller may see, by name.

        Raises:
            InvalidField: `page_size` or `page_token`.
            ModelNotFoundOrDenied: none is there to be seen, and the project may not be seen
                either or is missing.
        """
        size = check_page_size(page_size)
        with self._database.read() as tx:
            blocked = is_blocked(tx, caller, self._clock)
            page = visible_page(
                lambda wanted, token: tx.models.list(parent, wanted, token),
                lambda model: (
                    self._may(caller, Action.GET_MODEL, model.name, model.labels) and not blocked
                ),
                size,
                page_token,
            )
        # Who sees a model of the project knows of the project. A later page may well be empty.
        seen = bool(page.items or page_token)
        with self._gate.admit(
            caller, Action.GET_PROJECT, parent, event="ListModels", own=seen
        ) as permit:
            if not seen:
                permit.require(permit.found.project)
            permit.record(items=len(page.items))
            return page

    def list_versions(
        self, caller: Caller, parent: ModelName, page_size: int, page_token: str
    ) -> Page[VersionView]:
        """The model's versions, newest first.

        Raises:
            InvalidField: `page_size` or `page_token`.
            ModelNotFoundOrDenied: missing, or not permitted.
        """
        size = check_page_size(page_size)
        with self._gate.admit(caller, Action.GET_VERSION, parent, event="ListVersions") as permit:
            permit.require(permit.found.model)
            with self._database.read() as tx:
                aliases = tx.aliases.of_versions(parent)
                page = tx.versions.list(parent, size, page_token)
            permit.record(items=len(page.items))
            views = [
                VersionView(version, aliases.get(version.name.number, ())) for version in page.items
            ]
            return Page(views, page.next_page_token)

    def list_aliases(
        self, caller: Caller, parent: ModelName, page_size: int, page_token: str
    ) -> Page[Alias]:
        """The model's aliases, by id.

        Raises:
            InvalidField: `page_size` or `page_token`.
            ModelNotFoundOrDenied: missing, or not permitted.
        """
        size = check_page_size(page_size)
        with self._gate.admit(caller, Action.GET_MODEL, parent, event="ListAliases") as permit:
            permit.require(permit.found.model)
            with self._database.read() as tx:
                page = tx.aliases.list(parent, size, page_token)
            permit.record(items=len(page.items))
            return page

    def _may(
        self,
        caller: Caller,
        action: Action,
        name: ProjectName | ModelName,
        labels: Mapping[str, str],
    ) -> bool:
        model = name.model if isinstance(name, ModelName) else None
        resource = Resource(name.project, model, labels)
        request = AccessRequest(caller.principal, action, resource, self._clock.now())
        return self._policy.decide(request).permitted
