"""Declared wires: an example with five routes, served over HTTP beside the others and described by OpenAPI."""

from typing import Annotated, Any, Literal

import pytest
from aiohttp import ClientSession, web
from conftest import Client, Serve
from openapi_spec_validator import OpenAPIV31SpecValidator

from server.base.errors import Conflict, Invalid, ServiceError
from server.methods.registry import METHODS
from server.serving import app as composition
from server.serving import connections
from server.wires.mapping import Links, MethodResult, RestWire, Route, status_of
from server.wires.openapi import document
from server.wires.params import FLAG, ID, INTEGER, Member
from server.wires.rendering import AnswerModel, Computed, From, always, renderer

# --- the wire -----------------------------------------------------------------------------------------


class Person(AnswerModel):
    """A user as the toy wire shows it."""

    number: Annotated[int, From("id")]
    kind: Literal["person"]
    mail: Annotated[str, From("email")]
    admin: Annotated[Literal["yes", "no"], Computed(lambda flag: "yes" if flag else "no"), From("isAdmin")]
    tags: Annotated[list[str], always([])]
    # Left out where there is none.
    # Left out where its value is None.
    token: Annotated[str | None, Computed(lambda text: text or None), From("token")] = None


class Problem(AnswerModel):
    """What went wrong."""

    problem: str
    members: list[str]


_problem = renderer(Problem)
PERSON = {
    "mail": Member("email"),
    "name": Member("displayName"),
    "secret": Member("password"),
    "admin": Member("isAdmin", FLAG),
}
BY_MAIL = {"mail": (Member("email"),)}


def render_error(request: web.Request, error: ServiceError, status: int) -> tuple[int, Any]:
    """One line, and the members that it is about."""
    members = [field for field, _ in error.fields]
    return status, _problem({"problem": error.message, "members": members})


TOY = RestWire(
    name="toy",
    description="People.",
    prefixes=("/toy/",),
    base="/toy",
    either_slash=True,
    key_headers=("X-Toy-Key", "x-api-key"),
    errors={Invalid: 422, Conflict: 409},
    render_error=render_error,
    error_type=lambda status: Problem,
    routes=(
        Route(
            "POST", "/people", "createUser", Annotated[int, From("id")], 201, body=PERSON,
            links=Links("/people/{mail}", {"path.mail": "$request.body#/mail"}),
        ),
        Route("GET", "/people/{mail}", "getUserByEmail", Person, parts=BY_MAIL),
        Route("PUT", "/people/{mail}/off", "updateUserByEmail", status=204, parts=BY_MAIL, fixed={"isActive": False}),
        Route("DELETE", "/members/{number}", "deactivateUserById", status=204, parts={"number": (Member("id", ID),)}),
        Route("GET", "/plans", "listPlans", MethodResult(), query={"page": Member("page", INTEGER), "size": Member("perPage", INTEGER)}),
    ),
)  # fmt: skip


# --- driven over HTTP ---------------------------------------------------------------------------------


class Toy:
    """A client of the toy wire."""

    def __init__(self, http: ClientSession, url: str, key: str) -> None:
        self.http, self.url, self.key = http, url, key

    async def __call__(self, verb: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and body, None for no body."""
        headers = {"X-Toy-Key": self.key}
        async with self.http.request(verb, f"{self.url}/toy{path}", json=body, headers=headers) as response:
            text = await response.read()
            return response.status, await response.json() if text else None


@pytest.fixture
async def toy(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> Toy:
    """The server with the toy wire beside the others."""
    for module in (composition, connections):
        monkeypatch.setattr(module, "WIRES", (*composition.WIRES, TOY))
    client: Client = await serve()
    return Toy(client.http, client.url, client.key)


async def test_members_are_renamed_both_ways(toy: Toy) -> None:
    assert await toy("POST", "/people", {"mail": "ann@one.example", "secret": "demo1234", "admin": 1}) == (
        201,
        2,
    )
    person = {"number": 2, "kind": "person", "mail": "ann@one.example", "admin": "yes", "tags": []}
    assert await toy("GET", "/people/ann@one.example") == (200, person)
    assert await toy("GET", "/people/ANN@one.example/") == (200, person)
    assert await toy("PUT", "/people/ann@one.example/off") == (204, None)
    assert await toy("DELETE", "/members/2") == (204, None)


async def test_errors_name_the_members_of_the_wire(toy: Toy) -> None:
    status, answer = await toy("POST", "/people", {"mail": 5, "name": "", "zip": 1})
    assert (status, answer) == (422, {"problem": "zip: is not a member of this call", "members": ["zip"]})
    status, answer = await toy("POST", "/people", {"mail": 5, "name": ""})
    assert (status, set(answer["members"])) == (422, {"mail", "name"})
    await toy("POST", "/people", {"mail": "ann@one.example"})
    status, answer = await toy("POST", "/people", {"mail": "ann@one.example"})
    assert (status, answer["members"]) == (409, ["mail"])


async def test_a_query_is_read_as_text_and_its_errors_are_renamed(toy: Toy) -> None:
    status, answer = await toy("GET", "/plans?page=1&size=2")
    assert (status, answer["perPage"]) == (200, 2)
    assert await toy("GET", "/plans?size=x") == (
        422,
        {"problem": "size: must be an integer", "members": ["size"]},
    )
    assert (await toy("GET", "/plans?page=1&page=2"))[1]["problem"] == "page: is given twice"


@pytest.mark.parametrize(
    "path", ["/people/no@one.example", "/people/%00", "/nowhere", "/members/0", "/members/x"]
)
async def test_what_names_nothing_is_not_found(toy: Toy, path: str) -> None:
    verb = "DELETE" if "members" in path else "GET"
    status, answer = await toy(verb, path)
    assert (status, answer["members"]) == (404, [])


async def test_a_key_is_needed(toy: Toy) -> None:
    toy.key = "wrong"
    assert await toy("GET", "/plans") == (401, {"problem": "not-allowed", "members": []})


def test_statuses_come_from_the_nearest_kind() -> None:
    """Of the wire's own table; else those of /rpc."""
    assert [status_of(kind, TOY.errors) for kind in (Invalid, Conflict, ServiceError)] == [422, 409, 500]


# --- described ----------------------------------------------------------------------------------------


def test_openapi_is_made_from_the_declaration() -> None:
    described = document(METHODS.values(), [TOY])
    assert list(OpenAPIV31SpecValidator(described).iter_errors()) == []
    create = described["paths"]["/toy/people"]["post"]
    body = create["requestBody"]["content"]["application/json"]["schema"]
    assert set(body["properties"]) == set(PERSON) and body["required"] == ["mail"]
    assert create["x-method"] == ["createUser"] and create["security"] == [
        {"X-Toy-Key": []},
        {"x-api-key": []},
    ]
    assert set(create["responses"]["201"]["links"]) == {"get_toy_people_mail", "put_toy_people_mail_off"}
    assert {"401", "409", "422"} <= set(create["responses"])
    show = described["paths"]["/toy/people/{mail}"]["get"]["responses"]["200"]
    assert show["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Person"}
    person = described["components"]["schemas"]["Person"]
    assert set(person["properties"]) == {"number", "kind", "mail", "admin", "tags", "token"}
    assert set(person["required"]) == {"number", "kind", "mail", "admin", "tags"}
    size = described["paths"]["/toy/plans"]["get"]["parameters"][1]
    assert (size["name"], size["in"], size["schema"]["maximum"]) == ("size", "query", 100)
