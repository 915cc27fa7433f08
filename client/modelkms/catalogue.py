"""Projects, models, versions, aliases, leases: the calls that move no key and no artifact."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import TypeVar

from google.protobuf.duration_pb2 import Duration
from modelkms_api.v1 import key_service_pb2, master_key_service_pb2, model_service_pb2

from modelkms import convert
from modelkms.errors import AnswerInvalid, ReferenceInvalid, UsageError
from modelkms.reference import Reference, check_id
from modelkms.session import Session
from modelkms.types import (
    AliasInfo,
    LeaseInfo,
    MasterKeyInfo,
    ModelInfo,
    ProjectInfo,
    TrimInfo,
    VersionInfo,
)

PAGE_SIZE = 500
_MOST_PAGES = 10_000

Item = TypeVar("Item")


def project_name(project: str | None) -> str:
    """`projects/{project}`.

    Raises:
        ReferenceInvalid: None, or not an id.
    """
    if not project:
        raise ReferenceInvalid(
            "no project is named, and the profile has no default", hint="name a project"
        )
    return f"projects/{check_id(project, 'project')}"


def resolve(session: Session, name: str, attributes: Mapping[str, str] | None) -> VersionInfo:
    return resolve_located(session, name, attributes)[0]


def resolve_located(
    session: Session, name: str, attributes: Mapping[str, str] | None
) -> tuple[VersionInfo, str]:
    """The version, and a presigned link to its artifact: empty where the store signs none."""
    request = model_service_pb2.ResolveModelRequest(name=name, attributes=attributes or {})
    answer = session.call(session.models.ResolveModel, request)
    return require_meant(name, convert.version(answer.version)), answer.artifact.url


def require_meant(name: str, version: VersionInfo) -> VersionInfo:
    """`version`, if it is one that the reference `name` can mean.

    Raises:
        AnswerInvalid: it is of another model, or another number than was asked for.
    """
    asked, got = Reference.parse(name), Reference.parse(version.name)
    same_model = asked.model_name == got.model_name
    if not same_model or asked.number not in (None, got.number):
        raise AnswerInvalid("the service answered with another version than was asked for")
    return version


def create_project(session: Session, project: str) -> ProjectInfo:
    request = model_service_pb2.CreateProjectRequest(project_id=check_id(project, "project"))
    # Not repeated after a lost reply: the second would say ALREADY_EXISTS of our own project.
    return convert.project(session.call(session.models.CreateProject, request, idempotent=False))


def list_projects(session: Session) -> list[ProjectInfo]:
    def page(token: str) -> tuple[Iterable[ProjectInfo], str]:
        request = model_service_pb2.ListProjectsRequest(page_size=PAGE_SIZE, page_token=token)
        answer = session.call(session.models.ListProjects, request)
        return map(convert.project, answer.projects), answer.next_page_token

    return all_pages(page)


def list_models(session: Session, parent: str) -> list[ModelInfo]:
    def page(token: str) -> tuple[Iterable[ModelInfo], str]:
        request = model_service_pb2.ListModelsRequest(
            parent=parent, page_size=PAGE_SIZE, page_token=token
        )
        answer = session.call(session.models.ListModels, request)
        return map(convert.model, answer.models), answer.next_page_token

    return all_pages(page)


def list_versions(session: Session, parent: str) -> list[VersionInfo]:
    def page(token: str) -> tuple[Iterable[VersionInfo], str]:
        request = model_service_pb2.ListVersionsRequest(
            parent=parent, page_size=PAGE_SIZE, page_token=token
        )
        answer = session.call(session.models.ListVersions, request)
        return map(convert.version, answer.versions), answer.next_page_token

    return all_pages(page)


def list_aliases(session: Session, parent: str) -> list[AliasInfo]:
    def page(token: str) -> tuple[Iterable[AliasInfo], str]:
        request = model_service_pb2.ListAliasesRequest(
            parent=parent, page_size=PAGE_SIZE, page_token=token
        )
        answer = session.call(session.models.ListAliases, request)
        return map(convert.alias, answer.aliases), answer.next_page_token

    return all_pages(page)


def set_alias(session: Session, target: Reference, alias: str) -> AliasInfo:
    request = model_service_pb2.SetAliasRequest(
        name=f"{target.model_name}/aliases/{check_id(alias, 'alias')}",
        version=target.require_version(),
    )
    return convert.alias(session.call(session.models.SetAlias, request))


def enable(session: Session, name: str) -> VersionInfo:
    request = model_service_pb2.EnableVersionRequest(name=name)
    return convert.version(session.call(session.models.EnableVersion, request))


def disable(session: Session, name: str) -> VersionInfo:
    request = model_service_pb2.DisableVersionRequest(name=name)
    return convert.version(session.call(session.models.DisableVersion, request))


def destroy(
    session: Session, name: str, wait: timedelta | None, *, delete_artifact: bool
) -> VersionInfo:
    request = model_service_pb2.DestroyVersionRequest(
        name=name, wait=_duration(wait), delete_artifact=delete_artifact
    )
    # Not repeated after a lost reply: the second would say VERSION_DESTROY_SCHEDULED of our own.
    answer = session.call(session.models.DestroyVersion, request, idempotent=False)
    return convert.version(answer)


def confirm_destroy(session: Session, name: str) -> VersionInfo:
    request = model_service_pb2.ConfirmDestroyVersionRequest(name=name)
    return convert.version(session.call(session.models.ConfirmDestroyVersion, request))


def restore(session: Session, name: str) -> VersionInfo:
    request = model_service_pb2.RestoreVersionRequest(name=name)
    answer = session.call(session.models.RestoreVersion, request, idempotent=False)
    return convert.version(answer)


def list_leases(
    session: Session, parent: str, principal: str, model: str, *, show_ended: bool
) -> list[LeaseInfo]:
    def page(token: str) -> tuple[Iterable[LeaseInfo], str]:
        request = key_service_pb2.ListLeasesRequest(
            parent=parent,
            page_size=PAGE_SIZE,
            page_token=token,
            principal=principal,
            model=model,
            show_ended=show_ended,
        )
        answer = session.call(session.leases.ListLeases, request)
        return map(convert.lease, answer.leases), answer.next_page_token

    return all_pages(page)


def renew_lease(session: Session, name: str, ttl: timedelta | None) -> LeaseInfo:
    request = key_service_pb2.RenewLeaseRequest(name=name, ttl=_duration(ttl))
    return convert.lease(session.call(session.leases.RenewLease, request))


def revoke_leases(
    session: Session, parent: str, *, lease: str, principal: str, model: str, instance: str
) -> int:
    if lease and (principal or model or instance):
        raise UsageError("a lease is revoked alone, not together with other filters")
    if not (lease or principal or model or instance):
        raise UsageError(
            "nothing says which leases are meant",
            hint="name a lease, a principal, a model or an instance",
        )
    if lease and "/" not in lease:
        lease = f"{parent}/leases/{lease}"
    request = key_service_pb2.RevokeLeasesRequest(
        parent=parent, lease=lease, principal=principal, model=model, instance=instance
    )
    return session.call(session.leases.RevokeLeases, request).revoked


def check_retirement(session: Session, parent: str, oldest_version: int) -> MasterKeyInfo:
    request = master_key_service_pb2.CheckRetirementRequest(
        name=f"{parent}/masterKey", oldest_version=oldest_version
    )
    return convert.master_key(session.call(session.master_keys.CheckRetirement, request))


def request_trim(session: Session, parent: str, oldest_version: int) -> TrimInfo:
    request = master_key_service_pb2.RequestTrimRequest(
        name=f"{parent}/masterKey", oldest_version=oldest_version
    )
    return convert.trim(session.call(session.master_keys.RequestTrim, request))


def confirm_trim(session: Session, parent: str, oldest_version: int) -> TrimInfo:
    request = master_key_service_pb2.ConfirmTrimRequest(
        name=f"{parent}/masterKey", oldest_version=oldest_version
    )
    return convert.trim(session.call(session.master_keys.ConfirmTrim, request))


def get_master_key(session: Session, parent: str) -> MasterKeyInfo:
    request = master_key_service_pb2.GetMasterKeyRequest(name=f"{parent}/masterKey")
    return convert.master_key(session.call(session.master_keys.GetMasterKey, request))


def all_pages(page: Callable[[str], tuple[Iterable[Item], str]]) -> list[Item]:
    """Every item of a listing (AIP-158); an endless one is the service's fault."""
    items: list[Item] = []
    token = ""
    for _ in range(_MOST_PAGES):
        found, token = page(token)
        items.extend(found)
        if not token:
            return items
    raise AnswerInvalid("the service's listing does not end")


def _duration(ttl: timedelta | None) -> Duration | None:
    if ttl is None:
        return None
    duration = Duration()
    duration.FromTimedelta(ttl)
    return duration
