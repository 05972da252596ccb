"""The OpenRPC document as tools read it, and null for what may be left out."""

import json
import re
from collections.abc import Iterator
from typing import Annotated, Any, get_args

import asyncpg
import pytest
from conftest import Client
from jsonschema import Draft202012Validator
from pydantic import BaseModel, TypeAdapter, ValidationError

from server.base.errors import Invalid
from server.base.models import positions, validated
from server.methods.registry import METHODS
from server.rpc.openrpc import document
from server.serving.app import openapi
from server.tenants.instances import InstanceSettings


@pytest.fixture(scope="module")
def described() -> Any:
    return json.loads(json.dumps(document(tuple(METHODS.values()), "https://office.example")))


def validator(schema: Any, described: Any) -> Draft202012Validator:
    """Of a schema that refers to the document's components."""
    return Draft202012Validator(schema | {"components": described["components"]})


def members(value: Any) -> Iterator[Any]:
    """Every object in a JSON value."""
    if isinstance(value, (dict, list)):
        if isinstance(value, dict):
            yield value
        for part in value.values() if isinstance(value, dict) else value:
            yield from members(part)


# --- null ---------------------------------------------------------------------------------------------


def takes_null(field: Any) -> bool:
    """Whether pydantic takes null there."""
    kind = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
    try:
        TypeAdapter(kind).validate_python(None, strict=True)
    except ValidationError:
        return False
    return True


OPTIONAL = [
    pytest.param(method, field.alias or name, id=f"{method.name}.{name}")
    for method in METHODS.values()
    for name, field in method.params.model_fields.items()
    if not field.is_required() and not takes_null(field)
]


@pytest.mark.parametrize(("method", "member"), OPTIONAL)
def test_null_is_as_if_left_out_where_it_has_no_meaning(method: Any, member: str) -> None:
    params = dict(method.examples[0].params)
    params.pop(member, None)
    try:
        without = validated(method.params, params)
    except Invalid as error:  # that member is the only one to change
        with pytest.raises(Invalid, match=re.escape(error.message)):
            validated(method.params, params | {member: None})
        return
    given = validated(method.params, params | {member: None})
    assert given == without
    assert given.model_fields_set == without.model_fields_set


async def test_null_over_the_wire(client: Client) -> None:
    new = {"email": "ann@example.com", "displayName": None, "password": None, "isAdmin": None, "apps": None}
    assert (await client.call("createUser", new))["displayName"] == "ann"
    item = {"email": "bob@example.com", "displayName": None, "passwordHash": None}
    assert (await client.call("createUsers", {"users": [item]}))["succeeded"] == 1
    nothing = {"email": "ann@example.com", "displayName": None}
    message = "params: name at least one member to change"
    assert await client.outcome("updateUserByEmail", nothing) == (400, message)
    assert await client.outcome("createUser", {"email": None}) == (400, "email: must be a string")


async def test_null_keeps_its_meaning_where_it_has_one(client: Client) -> None:
    """It takes an externalId away; left out, that stays."""
    await client.call("createUser", {"email": "ann@example.com", "externalId": "shop-1"})
    await client.call("updateUserByEmail", {"email": "ann@example.com", "displayName": "Ann"})
    assert (await client.call("getStoreUser", {"externalId": "shop-1"}))["externalId"] == "shop-1"
    await client.call("updateUserByEmail", {"email": "ann@example.com", "externalId": None})
    assert (await client.outcome("getStoreUser", {"externalId": "shop-1"}))[0] == 400


async def test_null_in_a_list_leaves_a_param_out(client: Client) -> None:
    """There is no other way to give one that stands behind it."""
    await client.call("createUser", {"email": "ann@example.com", "externalId": "shop-1"})
    params: list[Any] = [None] * 30
    names = positions(METHODS["updateUserByEmail"].params)
    params[0], params[names.index("groups")] = "ann@example.com", []
    changed = {"jsonrpc": "2.0", "id": 1, "method": "updateUserByEmail", "params": params[: len(names)]}
    async with await client.post(changed) as response:
        assert (await response.json())["result"] is True
    assert (await client.call("getStoreUser", {"externalId": "shop-1"}))["externalId"] == "shop-1"
    nobody = {"jsonrpc": "2.0", "id": 1, "method": "getUserByEmail", "params": [None]}
    async with await client.post(nobody) as response:
        assert (await response.json())["error"]["message"] == "email: must be a string"


async def test_null_in_members_of_members(operator: Client) -> None:
    admin = {"email": "boss@acme.example", "displayName": None, "password": None}
    await operator.call("createInstance", {"name": "ACME", "title": None, "admin": admin})
    change = {"instance": "ACME", "settings": {"passwordPolicy": {"minLength": 9, "minClasses": None}}}
    await operator.call("updateInstance", change)
    policy = (await operator.call("getInstance", {"instance": "ACME"}))["settings"]["passwordPolicy"]
    assert (policy["minLength"], policy["minClasses"]) == (9, 1)


def settings_models(model: type[BaseModel] = InstanceSettings) -> Iterator[type[BaseModel]]:
    """The model of an instance's settings and those of its members."""
    yield model
    for field in model.model_fields.values():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from settings_models(kind)


SETTINGS = [
    pytest.param(model, name, id=f"{model.__name__}.{name}")
    for model in settings_models()
    for name, field in model.model_fields.items()
    if not field.is_required() and not takes_null(field)
]


@pytest.mark.parametrize(("model", "member"), SETTINGS)
def test_null_is_as_if_left_out_in_settings(model: type[BaseModel], member: str) -> None:
    given = model.model_validate({member: None})
    assert given == model() and not given.model_fields_set


async def test_null_in_the_settings_of_a_new_instance(operator: Client, db: asyncpg.Connection) -> None:
    """What is stored has the defaults; null keeps its meaning in members that take it."""
    settings = {
        "passwordPolicy": {"minLength": None, "minClasses": 2}, "generatedPasswords": None,
        "confirmationHosts": None, "positionsByHand": None, "maxUsers": None, "retentionDays": None,
        "office365": {"tenantId": "t", "clientId": "c", "clientSecret": "secret", "domain": None},
    }  # fmt: skip
    params = {"name": "ACME", "admin": {"email": "boss@acme.example"}, "settings": settings}
    assert (await operator.call("validateInstance", params))["failures"] == []
    created = await operator.call("createInstance", params)
    expected = InstanceSettings().model_dump() | {
        "passwordPolicy": {"minLength": 1, "minClasses": 2, "refuseCommon": False},
        "office365": {
            "tenantId": "t", "clientId": "c", "clientSecret": None, "domain": None, "usageLocation": None,
        },
    }  # fmt: skip
    assert created["settings"] == expected
    # An update without the secret keeps the stored one, whether it is null or left out.
    office = {"tenantId": "u", "clientId": "c", "clientSecret": None}
    await operator.call("updateInstance", {"instance": "ACME", "settings": {"office365": office}})
    stored = "SELECT settings -> 'office365' ->> 'clientSecret' FROM instances WHERE name = 'ACME'"
    assert await db.fetchval(stored) == "secret"
    await operator.call("updateInstance", {"instance": "ACME", "settings": {"office365": None}})
    assert (await operator.call("getInstance", {"instance": "ACME"}))["settings"]["office365"] is None
    refused = {"tenantId": None, "clientId": "c"}
    change = {"instance": "ACME", "settings": {"office365": refused}}
    said = (400, "settings.office365.tenantId: must be a string")
    assert await operator.outcome("updateInstance", change) == said


# --- the document -------------------------------------------------------------------------------------


def test_no_default_is_refused(described: Any) -> None:
    for method in described["methods"]:
        for schema in members([method["params"], method["result"], described["components"]["schemas"]]):
            if "default" in schema:
                assert validator(schema, described).is_valid(schema["default"]), (method["name"], schema)


def test_examples_fit_what_the_document_says(described: Any) -> None:
    """Their params are the first of the method's, in that order: there are tools that send them as a list."""
    for method in described["methods"]:
        # Where `values` or `filter` is a param, a client of @open-rpc/generator can do with nothing else.
        is_of_arrays = any(param["name"] in ("values", "filter") for param in method["params"])
        assert method["paramStructure"] == ("by-position" if is_of_arrays else "either")
        params = {param["name"]: param for param in method["params"]}
        for example, given in zip(method["examples"], METHODS[method["name"]].examples, strict=True):
            names = [param["name"] for param in example["params"]]
            assert names == list(params)[: len(names)], method["name"]
            assert {param["name"]: param["value"] for param in example["params"]} == dict.fromkeys(
                names
            ) | given.params, method["name"]
            for name, value in given.params.items():
                found = list(validator(params[name]["schema"], described).iter_errors(value))
                assert not found, (method["name"], name, found)
            kind = METHODS[method["name"]].params
            by_position = validated(kind, [param["value"] for param in example["params"]])
            by_name = validated(kind, given.params)
            assert by_position == by_name and by_position.model_fields_set == by_name.model_fields_set
            result = validator(method["result"]["schema"], described)
            assert not list(result.iter_errors(example["result"]["value"])), method["name"]


def test_what_is_validated_is_declared(described: Any) -> None:
    by_name = {method["name"]: method["params"] for method in described["methods"]}
    for one, other in (
        ("validateUser", "createUser"),
        ("validateReplacement", "replaceUserByEmail"),
        ("validateInstance", "createInstance"),
    ):
        declared = {param["name"]: param["schema"] for param in by_name[one]}
        assert list(declared) == [param["name"] for param in by_name[other]][: len(declared)]
        taken = {param["name"]: param["schema"] for param in by_name[other] if param["name"] != "dryRun"}
        assert declared == taken
        assert not any(param["required"] for param in by_name[one])


def test_the_discovery_is_not_among_the_methods(described: Any) -> None:
    names = [method["name"] for method in described["methods"]]
    assert names == [name for name in METHODS if name != "rpc.discover"]
    assert all(re.fullmatch("[A-Za-z0-9]+", name) for name in names), "names become those of functions"


async def test_the_document_says_where_the_server_is(client: Client, described: Any, officerpc: Any) -> None:
    assert described["servers"] == [{"name": "officerpc", "url": "https://office.example/rpc"}]
    discovered = await client.call("rpc.discover")
    assert discovered["servers"][0]["url"] == "http://127.0.0.1:8080/rpc"
    printed = await officerpc("openrpc", OFFICERPC_PUBLIC_URL="https://office.example/")
    assert printed.json == described


def test_only_what_is_referred_to_is_among_the_components(described: Any) -> None:
    text = json.dumps(described)
    for name in described["components"]["schemas"]:
        assert f'"#/components/schemas/{name}"' in text, name


@pytest.mark.parametrize("of", ["openrpc", "openapi"])
def test_the_documents_cite_nothing_that_their_readers_do_not_have(of: str, described: Any) -> None:
    text = json.dumps(described) if of == "openrpc" else openapi().decode()
    found = re.findall(r"[^ \"]*(?:seeds|README|CHANGELOG|contracts|\.py\b|\.md\b|\.sql\b)[^ \"]*", text)
    assert found == []
