"""KeyService: leasing data keys. Translates only."""

from __future__ import annotations

from modelkms_api.v1 import key_service_pb2 as pb
from modelkms_api.v1 import resources_pb2

from kms_service.domain.errors import InvalidField
from kms_service.domain.names import (
    LeaseName,
    ModelName,
    ProjectName,
    VersionName,
    parse_reference,
)
from kms_service.rpc import conversion
from kms_service.rpc.pipeline import Call
from kms_service.telemetry.metrics import Metrics
from kms_service.usecases.lease_data_key import LeaseDataKey
from kms_service.usecases.list_leases import ListLeases
from kms_service.usecases.own_leases import OwnLeases
from kms_service.usecases.renew_lease import RenewLease
from kms_service.usecases.revoke_leases import RevokeLeases


class KeyServicer:
    def __init__(
        self,
        *,
        lease_data_key: LeaseDataKey,
        renew_lease: RenewLease,
        revoke_leases: RevokeLeases,
        list_leases: ListLeases,
        own_leases: OwnLeases,
        metrics: Metrics,
    ) -> None:
        self._lease_data_key = lease_data_key
        self._renew_lease = renew_lease
        self._revoke_leases = revoke_leases
        self._list_leases = list_leases
        self._own_leases = own_leases
        self._metrics = metrics
        self._versions = conversion.VersionMessages()

    def lease_data_key(
        self, request: pb.LeaseDataKeyRequest, call: Call
    ) -> pb.LeaseDataKeyResponse:
        leased = self._lease_data_key(
            call.caller,
            parse_reference(request.name),
            conversion.client_key(request.client_key, request.HasField("client_key")),
            attributes=dict(request.attributes),
            ttl=conversion.ttl(request.ttl, request.HasField("ttl")),
            liveness=call,
        )
        self._metrics.leases_issued.inc()
        return pb.LeaseDataKeyResponse(
            lease=conversion.lease_message(leased.lease),
            version=self._versions.of(leased.version),
            artifact=conversion.location_message(leased.artifact),
            data_key=conversion.data_key_message(leased.data_key),
            lease_duration=conversion.duration(leased.lease_duration),
            max_offline=conversion.duration(leased.max_offline),
        )

    def renew_lease(self, request: pb.RenewLeaseRequest, call: Call) -> resources_pb2.Lease:
        name = LeaseName.parse(request.name)
        ttl = conversion.ttl(request.ttl, request.HasField("ttl"))
        renewed = self._renew_lease(call.caller, name, ttl)
        self._metrics.leases_renewed.inc()
        return conversion.lease_message(renewed)

    def revoke_leases(self, request: pb.RevokeLeasesRequest, call: Call) -> pb.RevokeLeasesResponse:
        parent = ProjectName.parse(request.parent, "parent")
        if request.lease:
            if request.principal or request.model or request.instance:
                raise InvalidField("lease", "must be given alone")
            lease = LeaseName.parse(request.lease, "lease")
            if lease.project != parent.project:
                raise InvalidField("lease", "must be of the project in parent")
            revoked = self._revoke_leases.one(call.caller, lease)
        else:
            revoked = self._revoke_leases.matching(
                call.caller,
                parent,
                principal=conversion.optional_text(request.principal, "principal"),
                model=_model_or_version(request.model),
                instance=conversion.instance(request.instance),
            )
        self._metrics.leases_revoked.inc(revoked)
        return pb.RevokeLeasesResponse(revoked=revoked)

    def check_leases(self, request: pb.CheckLeasesRequest, call: Call) -> pb.CheckLeasesResponse:
        names = conversion.lease_names(request.leases)
        ended = self._own_leases.ended(call.caller.principal, names)
        return pb.CheckLeasesResponse(ended=map(str, ended))

    def list_leases(self, request: pb.ListLeasesRequest, call: Call) -> pb.ListLeasesResponse:
        page = self._list_leases(
            call.caller,
            ProjectName.parse(request.parent, "parent"),
            request.page_size,
            request.page_token,
            principal=conversion.optional_text(request.principal, "principal"),
            model=_model_or_version(request.model),
            show_ended=request.show_ended,
        )
        return pb.ListLeasesResponse(
            leases=map(conversion.lease_message, page.items), next_page_token=page.next_page_token
        )


def _model_or_version(name: str) -> ModelName | VersionName | None:
    if not name:
        return None
    if "/versions/" in name:
        return VersionName.parse(name, "model")
    return ModelName.parse(name, "model")
