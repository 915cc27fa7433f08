"""AccessService: blocks and freezes. Translates only."""

from __future__ import annotations

from modelkms_api.v1 import access_service_pb2 as pb

from kms_service.domain.names import ProjectName
from kms_service.domain.standing import Block, Freeze
from kms_service.rpc import conversion
from kms_service.rpc.pipeline import Call
from kms_service.telemetry.metrics import Metrics
from kms_service.usecases.standing import Standing


class AccessServicer:
    def __init__(self, *, standing: Standing, metrics: Metrics) -> None:
        self._standing = standing
        self._metrics = metrics

    def block_principal(
        self, request: pb.BlockPrincipalRequest, call: Call
    ) -> pb.BlockPrincipalResponse:
        block, revoked = self._standing.block(
            call.caller,
            conversion.text(request.principal, "principal"),
            conversion.reason(request.reason),
            conversion.time(request.until_time, request.HasField("until_time"), "until_time"),
        )
        self._metrics.leases_revoked.inc(revoked)
        return pb.BlockPrincipalResponse(block=_block_message(block), revoked=revoked)

    def unblock_principal(
        self, request: pb.UnblockPrincipalRequest, call: Call
    ) -> pb.UnblockPrincipalResponse:
        principal = conversion.text(request.principal, "principal")
        return pb.UnblockPrincipalResponse(
            was_blocked=self._standing.unblock(call.caller, principal)
        )

    def list_blocks(self, request: pb.ListBlocksRequest, call: Call) -> pb.ListBlocksResponse:
        page = self._standing.list_blocks(call.caller, request.page_size, request.page_token)
        return pb.ListBlocksResponse(
            blocks=map(_block_message, page.items), next_page_token=page.next_page_token
        )

    def freeze_project(
        self, request: pb.FreezeProjectRequest, call: Call
    ) -> pb.FreezeProjectResponse:
        freeze, revoked = self._standing.freeze(
            call.caller,
            ProjectName.parse(request.name),
            conversion.reason(request.reason),
        )
        self._metrics.leases_revoked.inc(revoked)
        return pb.FreezeProjectResponse(freeze=_freeze_message(freeze), revoked=revoked)

    def unfreeze_project(
        self, request: pb.UnfreezeProjectRequest, call: Call
    ) -> pb.UnfreezeProjectResponse:
        name = ProjectName.parse(request.name)
        return pb.UnfreezeProjectResponse(was_frozen=self._standing.unfreeze(call.caller, name))

    def list_freezes(self, request: pb.ListFreezesRequest, call: Call) -> pb.ListFreezesResponse:
        page = self._standing.list_freezes(call.caller, request.page_size, request.page_token)
        return pb.ListFreezesResponse(
            freezes=map(_freeze_message, page.items), next_page_token=page.next_page_token
        )


def _block_message(block: Block) -> pb.Block:
    return pb.Block(
        principal=block.principal,
        reason=block.reason,
        blocked_by=block.blocked_by,
        create_time=conversion.timestamp(block.create_time),
        until_time=conversion.timestamp(block.until),
    )


def _freeze_message(freeze: Freeze) -> pb.Freeze:
    return pb.Freeze(
        project=str(freeze.project),
        reason=freeze.reason,
        frozen_by=freeze.frozen_by,
        create_time=conversion.timestamp(freeze.create_time),
    )
