"""A client of the SCIM wire for tests."""

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from conftest import Client
from multidict import CIMultiDictProxy

USER = "urn:ietf:params:scim:schemas:core:2.0:User"
GROUP = "urn:ietf:params:scim:schemas:core:2.0:Group"
ENTERPRISE = "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User"
OFFICE = "urn:ietf:params:scim:schemas:extension:officerpc:2.0:User"
MESSAGES = "urn:ietf:params:scim:api:messages:2.0:"
ERROR, LIST = MESSAGES + "Error", MESSAGES + "ListResponse"


@dataclass
class Answer:
    """An answer of the server."""

    status: int
    body: Any
    headers: CIMultiDictProxy[str]

    @property
    def outcome(self) -> tuple[int, str | None]:
        """Status and scimType."""
        return self.status, self.body.get("scimType")


@dataclass
class Scim:
    """An identity provider: sends requests with a bearer token."""

    client: Client
    base: str = "/scim/v2"
    media_type: str = "application/scim+json"

    async def __call__(self, verb: str, path: str, body: Any = None, **headers: str) -> Answer:
        """Send a request, and check that the answer has SCIM's format. In names of headers, _ stands for -."""
        sent = {"Authorization": f"Bearer {self.client.key}", "Content-Type": self.media_type}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        url = f"{self.client.url}{self.base}{path}"
        async with self.client.http.request(verb, url, json=body, headers=sent) as response:
            text = await response.read()
            answered = await response.json(content_type=None) if text else None
            if text:
                assert response.headers["Content-Type"] == "application/scim+json"
                assert isinstance(answered["schemas"], list)
            if response.status >= 400:
                assert answered["schemas"] == [ERROR] and answered["status"] == str(response.status), answered
                assert answered["detail"]
            return Answer(response.status, answered, response.headers)

    async def done(self, verb: str, path: str, body: Any = None, **headers: str) -> Any:
        """The body of the answer to a request that must succeed."""
        answered = await self(verb, path, body, **headers)
        assert answered.status in (200, 201, 204), answered
        return answered.body

    async def patch(self, path: str, *operations: dict[str, Any], **headers: str) -> Answer:
        """A PATCH of these operations."""
        return await self(
            "PATCH", path, {"schemas": [MESSAGES + "PatchOp"], "Operations": list(operations)}, **headers
        )


def user(name: str, /, **members: Any) -> dict[str, Any]:
    """A user to create."""
    return {"schemas": [USER], "userName": name, **members}


def group(name: str, /, *members: str) -> dict[str, Any]:
    """A group to create, with the ids of its members."""
    return {"schemas": [GROUP], "displayName": name, "members": [{"value": one} for one in members]}


def where(text: str) -> str:
    """The query string for a filter."""
    return f"?filter={quote(text, safe='')}"
