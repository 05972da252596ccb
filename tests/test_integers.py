"""Integers in params: those of JSON Schema (1.0 and 1e2 too) and nothing else, in every method."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import Client

from server.base.errors import Invalid
from server.base.models import Unchecked, validated
from server.methods.registry import METHODS

Build = Callable[[Any], Any]


def integers(schema: dict[str, Any], definitions: dict[str, Any]) -> Iterator[tuple[str, Build]]:
    """Every place of an integer in what a schema describes: its path, and a value with an integer there alone."""
    if "$ref" in schema:
        yield from integers(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    for branch in schema.get("anyOf", ()):
        yield from integers(branch, definitions)
    match schema:
        case {"type": "integer"}:
            yield "", lambda number: number
        case {"type": "array", "items": items}:
            for path, build in integers(items, definitions):
                yield f".0{path}", lambda number, build=build: [build(number)]
        case {"type": "object"}:
            for name, member in schema.get("properties", {}).items():
                for path, build in integers(member, definitions):
                    yield f".{name}{path}", lambda number, name=name, build=build: {name: build(number)}
            others = schema.get("additionalProperties")
            for path, build in integers(others, definitions) if isinstance(others, dict) else ():
                yield f".EUR{path}", lambda number, build=build: {"EUR": build(number)}


def members() -> Iterator[Any]:
    for name, method in METHODS.items():
        if issubclass(method.params, Unchecked):
            continue  # takes the params of another method, good or bad
        schema = method.params.model_json_schema()
        for path, build in integers(schema, schema.get("$defs", {})):
            # Bulk methods hold each item to the model of the single one; profile fields have types of their own.
            if not path.startswith((".users.0.", ".profile.countryId")):
                yield pytest.param(method.params, path[1:], build, id=f"{name}{path}")


def complaint(model: Any, params: Any, path: str) -> str | None:
    """What is said of one member; others are missing."""
    try:
        validated(model, params)
    except Invalid as error:
        return dict(error.fields).get(path)
    return None


MEMBERS = list(members())


def test_there_are_members_of_every_kind() -> None:
    """Among them optional ones, lists, dictionaries, and members of members."""
    names = {member.id for member in MEMBERS}
    assert len(names) > 100
    assert names > {
        "getUserById.id", "createUser.settings.0", "createPlan.prices.EUR", "listUsers.limit", "createUser.instance",
        "updateInstance.settings.passwordPolicy.minLength", "createInstance.settings.passwordPolicy.minLength",
    }  # fmt: skip


@pytest.mark.parametrize(("model", "path", "build"), MEMBERS)
def test_every_integer_of_every_method(model: Any, path: str, build: Build) -> None:
    number = 50  # within the range of most of them; where it is not, the same is said of both
    expected = complaint(model, build(number), path)
    assert expected is None or "integer" not in expected
    assert complaint(model, build(float(number)), path) == expected
    for wrong in (1.5, True, 1e300, -1e19, float(2**53 + 2)):
        said = complaint(model, build(wrong), path)
        assert said in ("must be an integer", "must be a string"), (wrong, said)  # a string is named first


@pytest.mark.parametrize("number", ["3.0", "3e0", "30e-1", "0.3E1"])
async def test_a_zero_fraction_is_an_integer(number: str, client: Client) -> None:
    body = '{"method": "createUser", "params": {"email": "a@example.com", "settings": [' + number + "]}}"
    async with await client.post(body) as response:
        assert (response.status, (await response.json())["settings"]) == (200, "{3}")


async def test_ranges_hold_and_the_rest_is_refused(client: Client) -> None:
    for number, said in (
        (2.0**31, "less than 2147483648"), (1.5, "an integer"), (True, "an integer"), ("1", "an integer"), (1e300, "an integer")
    ):  # fmt: skip
        status, message = await client.outcome("createUser", {"email": "a@example.com", "settings": [number]})
        assert (status, message) == (400, f"settings.0: must be {said}")


async def test_members_of_any_type_keep_the_number_as_it_came(client: Client) -> None:
    """A value of the caller's own is no integer of ours."""
    await client.call("createUser", {"email": "a@example.com", "values": {"editorTemplates": {"ratio": 1.0}}})
    body = {"method": "getUserByEmail", "params": {"email": "a@example.com"}}
    async with await client.post(body) as response:
        assert '"ratio":1.0' in await response.text()


async def test_the_country_of_a_profile_takes_them_too(client: Client) -> None:
    """A profile field that holds an id; it is stored as an integer. Numbers keep their fraction."""
    await client.call("defineProfileField", {"alias": "height", "title": "Height", "type": "number"})
    profile = {"firstname": "Ann", "lastname": "Lee", "countryId": 7.0, "height": 2.0}
    new = {"login": "ann@example.com", "sponsorId": 1, "profile": profile}
    body = {"method": "createMember", "params": new}
    async with await client.post(body) as response:
        text = await response.text()
    assert '"countryId":7,' in text and '"height":2.0' in text
    for wrong in (7.5, True, 1e300):
        params = new | {"login": "bob@example.com", "profile": profile | {"countryId": wrong}}
        assert await client.outcome("createMember", params) == (400, "profile.countryId: must be a string")


async def test_items_of_bulk_methods_take_them_too(client: Client) -> None:
    users = [{"email": "a@example.com", "settings": [1.0]}, {"email": "b@example.com", "settings": [True]}]
    created = await client.call("createUsers", {"mode": "each", "users": users})
    assert (created["succeeded"], created["failed"]) == (1, 1)


async def test_other_wires_take_them_too(client: Client, jane: dict[str, Any]) -> None:
    """Their integers, and their flags, which are 0 or 1, and the type of a user, which can be any integer."""

    async def send(path: str, body: Any) -> Any:
        headers = {"x-api-key": client.key}
        async with client.http.post(client.url + path, json=body, headers=headers) as response:
            return await response.json()

    reader = {
        "email": "b@example.com",
        "external_id": "x",
        "new_password": "Abcd1234",
        "sessions_limit": 2.0,
        "plan_admin": 1.0,
    }
    created = await send("/integration-api/v1/dashboard/users/", reader)
    assert created.get("CODE") == "success", created
    form = {"userId": jane["id"], "type": 1.0, "newPassword": "Abcd1234"}
    changed = await send("/main-app/user/set-password", form)
    assert changed["errorCode"] == 0, changed
    gone = await send("/online-office/user/delete", {"authId": float(jane["id"]), "withAccount": 1.0})
    assert gone["errorCode"] == 0
