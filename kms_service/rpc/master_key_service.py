"""MasterKeyService: what can be known of master keys. Translates only."""

from __future__ import annotations

from modelkms_api.v1 import master_key_service_pb2 as pb
from modelkms_api.v1 import resources_pb2

from kms_service.domain.errors import InvalidField
from kms_service.domain.names import ProjectName
from kms_service.rpc import conversion
from kms_service.rpc.pipeline import Call
from kms_service.usecases.get_master_key import GetMasterKey

_SUFFIX = "/masterKey"


class MasterKeyServicer:
    def __init__(self, *, get_master_key: GetMasterKey) -> None:
        self._get_master_key = get_master_key

    def get_master_key(
        self, request: pb.GetMasterKeyRequest, call: Call
    ) -> resources_pb2.MasterKey:
        if not request.name.endswith(_SUFFIX):
            raise InvalidField("name", "must be projects/{project}/masterKey")
        project = ProjectName.parse(request.name.removesuffix(_SUFFIX))
        return conversion.master_key_message(self._get_master_key(call.caller, project))
