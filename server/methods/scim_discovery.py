"""Discovery for SCIM clients: the features of the service, its schemas and resource types."""

import asyncio
from functools import cache
from typing import Any, Literal

from pydantic import Field
from scim2_models import Context, ResourceType

from server.base.errors import NotFound
from server.base.models import TenantParams
from server.base.settings import Settings
from server.directory.scim.models import EnterpriseUser, Group, OfficeUser, User
from server.directory.scim.search import DEFAULT_RESULTS, MOST_RESULTS
from server.directory.scim.users import base_address
from server.methods.registry import Example, method
from server.tenants.call import Call

CONFIG_SCHEMA = "urn:ietf:params:scim:schemas:core:2.0:ServiceProviderConfig"


class DescribeScim(TenantParams):
    """The document to describe."""

    document: Literal["ServiceProviderConfig", "Schemas", "ResourceTypes"]
    id: str | None = Field(
        None, max_length=200, description="One schema by its URN, or one resource type by its name."
    )


def _config(settings: Settings) -> dict[str, Any]:
    """The features of the service (RFC 7643, section 5; RFC 9865, section 3)."""
    return {
        "schemas": [CONFIG_SCHEMA],
        "patch": {"supported": True},
        "bulk": {
            "supported": True,
            "maxOperations": settings.scim_bulk_operations,
            "maxPayloadSize": settings.body_limit,
        },
        "filter": {"supported": True, "maxResults": MOST_RESULTS},
        "changePassword": {"supported": True},
        "sort": {"supported": True},
        "etag": {"supported": True},
        "pagination": {
            "cursor": True,
            "index": True,
            "defaultPaginationMethod": "index",
            "defaultPageSize": DEFAULT_RESULTS,
            "maxPageSize": MOST_RESULTS,
        },
        "authenticationSchemes": [
            {
                "type": "oauthbearertoken",
                "name": "API key",
                "description": "An API key as a bearer token: Authorization: Bearer KEY",
                "specUri": "https://www.rfc-editor.org/info/rfc6750",
                "primary": True,
            }
        ],
    }


@cache
def _documents() -> dict[str, dict[str, dict[str, Any]]]:
    """The schemas and resource types by id, generated from the models."""
    shown = Context.RESOURCE_QUERY_RESPONSE
    schemas = [model.to_schema() for model in (User, Group, EnterpriseUser, OfficeUser)]
    types = [ResourceType.from_resource(model) for model in (User, Group)]
    return {
        "Schemas": {str(schema.id): schema.model_dump(scim_ctx=shown) for schema in schemas},
        "ResourceTypes": {str(kind.id): kind.model_dump(scim_ctx=shown) for kind in types},
    }


async def _prepare(call: Call, params: DescribeScim) -> dict[str, dict[str, dict[str, Any]]]:
    """The documents, in a thread: generating them takes about 50 ms, once."""
    return await asyncio.to_thread(_documents)


def _with_meta(document: dict[str, Any], kind: str, address: str) -> dict[str, Any]:
    return document | {"meta": {"resourceType": kind, "location": address}}


@method(
    "describeScim",
    result=dict[str, Any],
    scope="users:read",
    writes=False,
    errors=(NotFound,),
    prepare=_prepare,
    examples=(
        Example(
            "A resource type",
            {"document": "ResourceTypes", "id": "Group"},
            {
                "schemas": ["urn:ietf:params:scim:schemas:core:2.0:ResourceType"],
                "id": "Group",
                "name": "Group",
                "description": "Group",
                "endpoint": "/Groups",
                "schema": "urn:ietf:params:scim:schemas:core:2.0:Group",
                "meta": {
                    "resourceType": "ResourceType",
                    "location": "http://127.0.0.1:8080/scim/v2/MYINSTANCE/ResourceTypes/Group",
                },
            },
        ),
    ),
)
async def describe_scim(
    call: Call, params: DescribeScim, prepared: dict[str, dict[str, dict[str, Any]]]
) -> Any:
    """Describe the SCIM service of an instance (RFC 7644, section 4).

    Without `id`, schemas and resource types are lists: `totalResults` and `Resources`.
    """
    base = base_address(call.settings, call.instance)
    address = f"{base}/{params.document}"
    if params.document == "ServiceProviderConfig":
        if params.id is not None:
            raise NotFound
        return _with_meta(_config(call.settings), params.document, address)
    documents = prepared[params.document]
    kind = params.document.removesuffix("s")
    if params.id is not None:
        if params.id not in documents:
            raise NotFound
        return _with_meta(documents[params.id], kind, f"{address}/{params.id}")
    shown = [_with_meta(document, kind, f"{address}/{name}") for name, document in documents.items()]
    return {
        "totalResults": len(shown), "startIndex": 1, "itemsPerPage": len(shown), "Resources": shown,
    }  # fmt: skip
