"""ModelService: projects, models, versions and aliases. Translates only."""

from __future__ import annotations

from modelkms_api.v1 import model_service_pb2 as pb
from modelkms_api.v1 import resources_pb2

from kms_service.domain.names import (
    AliasName,
    ModelName,
    ProjectName,
    VersionName,
    check_id,
    parse_reference,
)
from kms_service.rpc import conversion
from kms_service.rpc.pipeline import Call
from kms_service.usecases.browse_catalogue import BrowseCatalogue
from kms_service.usecases.create_model import CreateModel
from kms_service.usecases.create_project import CreateProject
from kms_service.usecases.create_version import CreateVersion
from kms_service.usecases.destroy_version import DestroyVersion
from kms_service.usecases.finalize_version import FinalizeVersion
from kms_service.usecases.resolve_model import ResolveModel
from kms_service.usecases.set_alias import SetAlias
from kms_service.usecases.version_state import ChangeVersionState


class ModelServicer:
    def __init__(
        self,
        *,
        browse: BrowseCatalogue,
        create_project: CreateProject,
        create_model: CreateModel,
        create_version: CreateVersion,
        finalize_version: FinalizeVersion,
        change_state: ChangeVersionState,
        destroy: DestroyVersion,
        set_alias: SetAlias,
        resolve_model: ResolveModel,
    ) -> None:
        self._browse = browse
        self._create_project = create_project
        self._create_model = create_model
        self._create_version = create_version
        self._finalize_version = finalize_version
        self._change_state = change_state
        self._destroy = destroy
        self._set_alias = set_alias
        self._resolve_model = resolve_model

    # --- projects ------------------------------------------------------------------------------

    def create_project(self, request: pb.CreateProjectRequest, call: Call) -> resources_pb2.Project:
        name = ProjectName(check_id(request.project_id, "project_id"))
        return conversion.project_message(self._create_project(call.caller, name))

    def get_project(self, request: pb.GetProjectRequest, call: Call) -> resources_pb2.Project:
        name = ProjectName.parse(request.name)
        return conversion.project_message(self._browse.get_project(call.caller, name))

    def list_projects(self, request: pb.ListProjectsRequest, call: Call) -> pb.ListProjectsResponse:
        page = self._browse.list_projects(call.caller, request.page_size, request.page_token)
        return pb.ListProjectsResponse(
            projects=map(conversion.project_message, page.items),
            next_page_token=page.next_page_token,
        )

    # --- models --------------------------------------------------------------------------------

    def create_model(self, request: pb.CreateModelRequest, call: Call) -> resources_pb2.Model:
        parent = ProjectName.parse(request.parent, "parent")
        name = ModelName(parent.project, check_id(request.model_id, "model_id"))
        model = self._create_model(call.caller, name, dict(request.labels))
        return conversion.model_message(model)

    def get_model(self, request: pb.GetModelRequest, call: Call) -> resources_pb2.Model:
        name = ModelName.parse(request.name)
        return conversion.model_message(self._browse.get_model(call.caller, name))

    def list_models(self, request: pb.ListModelsRequest, call: Call) -> pb.ListModelsResponse:
        parent = ProjectName.parse(request.parent, "parent")
        page = self._browse.list_models(call.caller, parent, request.page_size, request.page_token)
        return pb.ListModelsResponse(
            models=map(conversion.model_message, page.items), next_page_token=page.next_page_token
        )

    # --- versions ------------------------------------------------------------------------------

    def create_version(
        self, request: pb.CreateVersionRequest, call: Call
    ) -> pb.CreateVersionResponse:
        parent = ModelName.parse(request.parent, "parent")
        client_key = conversion.client_key(request.client_key, request.HasField("client_key"))
        created = self._create_version(
            call.caller, parent, request.request_id, client_key, liveness=call
        )
        return pb.CreateVersionResponse(
            version=conversion.version_message(created.version),
            data_key=conversion.data_key_message(created.data_key),
        )

    def finalize_version(
        self, request: pb.FinalizeVersionRequest, call: Call
    ) -> pb.FinalizeVersionResponse:
        name = VersionName.parse(request.name)
        pin = conversion.pin(request.pin, request.HasField("pin"))
        rekey_of = VersionName.parse(request.rekey_of, "rekey_of") if request.rekey_of else None
        finalized = self._finalize_version(
            call.caller, name, pin, request.promote, liveness=call, rekey_of=rekey_of
        )
        return pb.FinalizeVersionResponse(
            version=conversion.version_message(finalized.version),
            stable_version=str(finalized.stable_version),
        )

    def get_version(self, request: pb.GetVersionRequest, call: Call) -> resources_pb2.Version:
        name = VersionName.parse(request.name)
        return conversion.version_message(self._browse.get_version(call.caller, name))

    def list_versions(self, request: pb.ListVersionsRequest, call: Call) -> pb.ListVersionsResponse:
        parent = ModelName.parse(request.parent, "parent")
        page = self._browse.list_versions(
            call.caller, parent, request.page_size, request.page_token
        )
        return pb.ListVersionsResponse(
            versions=map(conversion.version_message, page.items),
            next_page_token=page.next_page_token,
        )

    def enable_version(self, request: pb.EnableVersionRequest, call: Call) -> resources_pb2.Version:
        name = VersionName.parse(request.name)
        return conversion.version_message(self._change_state.enable(call.caller, name))

    def disable_version(
        self, request: pb.DisableVersionRequest, call: Call
    ) -> resources_pb2.Version:
        name = VersionName.parse(request.name)
        return conversion.version_message(self._change_state.disable(call.caller, name))

    def destroy_version(
        self, request: pb.DestroyVersionRequest, call: Call
    ) -> resources_pb2.Version:
        name = VersionName.parse(request.name)
        wait = conversion.ttl(request.wait, request.HasField("wait"), "wait")
        return conversion.version_message(
            self._destroy.schedule(call.caller, name, wait, request.delete_artifact)
        )

    def confirm_destroy_version(
        self, request: pb.ConfirmDestroyVersionRequest, call: Call
    ) -> resources_pb2.Version:
        name = VersionName.parse(request.name)
        return conversion.version_message(self._destroy.confirm(call.caller, name))

    def restore_version(
        self, request: pb.RestoreVersionRequest, call: Call
    ) -> resources_pb2.Version:
        name = VersionName.parse(request.name)
        return conversion.version_message(self._destroy.restore(call.caller, name))

    # --- aliases -------------------------------------------------------------------------------

    def set_alias(self, request: pb.SetAliasRequest, call: Call) -> resources_pb2.Alias:
        name = AliasName.parse(request.name)
        version = VersionName.parse(request.version, "version")
        return conversion.alias_message(self._set_alias(call.caller, name, version))

    def list_aliases(self, request: pb.ListAliasesRequest, call: Call) -> pb.ListAliasesResponse:
        parent = ModelName.parse(request.parent, "parent")
        page = self._browse.list_aliases(call.caller, parent, request.page_size, request.page_token)
        return pb.ListAliasesResponse(
            aliases=map(conversion.alias_message, page.items),
            next_page_token=page.next_page_token,
        )

    # --- resolving -----------------------------------------------------------------------------

    def resolve_model(self, request: pb.ResolveModelRequest, call: Call) -> pb.ResolveModelResponse:
        reference = parse_reference(request.name)
        resolved = self._resolve_model(call.caller, reference, dict(request.attributes))
        return pb.ResolveModelResponse(
            version=conversion.version_message(resolved.version),
            artifact=conversion.location_message(resolved.artifact),
        )
