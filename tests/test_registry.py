"""The registry: examples that run, a valid OpenRPC document, declared scopes."""

import json
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from conftest import Client, contents, insert_key
from jsonschema import Draft7Validator
from pydantic import TypeAdapter
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT7

from server.base.models import Params
from server.methods.registry import METHODS, Example, method
from server.methods.sessions import EXAMPLE_TOKEN
from server.rpc.openrpc import document
from server.tenants.call import Call

EXAMPLES = [
    pytest.param(name, example, id=f"{name}: {example.name}")
    for name, registered in METHODS.items()
    for example in registered.examples
]


OF_ANOTHER_INSTANCE = {"retryJob": 0, "createInstance": 3}
"""0: what belongs to none. A new instance knows of its making; its rehearsal has taken the number 2."""


def _secrets(value: Any) -> list[str]:
    """What must not be written down, of params or of an answer."""
    if isinstance(value, list):
        return [secret for item in value for secret in _secrets(item)]
    if not isinstance(value, dict):
        return []
    found = [secret for item in value.values() for secret in _secrets(item)]
    names = (
        "password",
        "newPassword",
        "passwordHash",
        "token",
        "code",
        "key",
        "secret",
        "clientSecret",
        "data",
    )
    return found + [value[name] for name in names if isinstance(value.get(name), str) and value[name]]


def _shape(value: Any) -> Any:
    """The members and types of a value, whatever it holds."""
    if isinstance(value, dict):
        return {name: _shape(item) for name, item in value.items()}
    return type(value).__name__


@pytest.mark.parametrize(("name", "example"), EXAMPLES)
async def test_examples_run(
    name: str,
    example: Example,
    client: Client,
    operator: Client,
    examples: None,
    db: asyncpg.Connection,
) -> None:
    """Each in the instance that the fixture `examples` fills; what writes, dry before."""
    caller = operator if METHODS[name].operator else client
    rehearsed = None
    if METHODS[name].writes:
        before = await contents(db)
        rehearsed = await caller.call(name, example.params | {"dryRun": True})
        assert await contents(db) == before, "a dry run has written something"
    written = await db.fetchval("SELECT count(*) FROM events")
    answer = await caller.call(name, example.params)
    assert not METHODS[name].writes or _shape(rehearsed) == _shape(answer)
    TypeAdapter(METHODS[name].result).validate_python(answer)
    new = await db.fetch("SELECT * FROM events ORDER BY xid, place OFFSET $1", written)
    assert bool(new) == METHODS[name].writes
    for row in new:
        told = str(dict(row))
        assert row["method"] == name and row["instance_id"] == OF_ANOTHER_INSTANCE.get(name, 1)
        for secret in {*_secrets(example.params), *_secrets(answer), "a secret"}:
            assert secret not in told, f"{name} writes a secret down"
    if name == "rpc.discover":
        assert answer["openrpc"] == example.result["openrpc"]
    elif isinstance(answer, dict) and "tokenExpiresAt" not in answer and "key" not in answer:
        assert set(answer) == set(example.result)
    elif not isinstance(answer, (dict, list)):
        assert answer == example.result


def test_the_openrpc_document_is_valid() -> None:
    """Against the meta-schema of OpenRPC 1.4, which the project publishes under Apache-2.0.

    The document calls itself 1.2.6, as the tools of the project take no newer version.
    """
    meta = json.loads((Path(__file__).parent / "data" / "openrpc-1.4.schema.json").read_text())
    # It refers to JSON Schema's own meta-schema at an address of its own; draft 7 is what stands there.
    draft = Draft7Validator.META_SCHEMA | {
        "$id": "https://meta.json-schema.tools/",
        "definitions": Draft7Validator.META_SCHEMA["definitions"]
        | {"JSONSchemaObject": {"properties": {"$ref": {"type": "string"}}}},
    }
    resource = Resource.from_contents(draft, default_specification=DRAFT7)
    registry = Registry().with_resources(
        [("https://meta.json-schema.tools/", resource), ("https://meta.json-schema.tools", resource)]
    )
    described = json.loads(json.dumps(document(tuple(METHODS.values())))) | {"openrpc": "1.4.1"}
    validator = Draft7Validator(
        {**meta, "$schema": "http://json-schema.org/draft-07/schema#"}, registry=registry
    )
    assert [error.message for error in validator.iter_errors(described)] == []
    with_fault = described | {"methods": [{"name": "x"}]}
    assert list(validator.iter_errors(with_fault))


def test_the_openrpc_document_tells_everything() -> None:
    described = {entry["name"]: entry for entry in document(tuple(METHODS.values()))["methods"]}
    assert set(described) == set(METHODS) - {"rpc.discover"}
    documented = {name for name, entry in described.items() if entry["tags"] == [{"name": "oneoffice"}]}
    assert documented == {"createUser", "updateUserByEmail", "resetPasswordByEmail", "getUserByEmail"}
    for name, entry in described.items():
        assert entry["summary"] and entry["examples"] and entry["errors"], name
        required = [param["required"] for param in entry["params"]]
        assert required == sorted(required, reverse=True), f"{name}: optional params before required ones"
    assert any(error["code"] == -32009 for error in described["createUser"]["errors"])


def test_references_of_the_document_resolve() -> None:
    described = document(tuple(METHODS.values()))
    text = json.dumps(described)
    for name in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert name in described["components"]["schemas"]


async def test_what_is_wrong_with_a_registration_fails_at_import() -> None:
    async def handler(call: Call, params: Params) -> None:
        """Do nothing."""

    async def mute(call: Call, params: Params) -> None:
        pass

    example = (Example("x", {}, None),)
    common: dict[str, Any] = {"result": None, "writes": False, "registry": {}}
    with pytest.raises(TypeError, match="scope"):
        method("x", examples=example, **common)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="unknown scope"):
        method("x", scope="everything", examples=example, **common)
    with pytest.raises(ValueError, match="no example"):
        method("x", scope="docs:read", examples=(), **common)
    with pytest.raises(ValueError, match="no docstring"):
        method("x", scope="docs:read", examples=example, **common)(mute)
    method("x", scope="docs:read", examples=example, **common)(handler)
    with pytest.raises(ValueError, match="taken"):
        method("x", scope="docs:read", examples=example, **common)


async def test_every_method_needs_its_scope(client: Client, db: asyncpg.Connection) -> None:
    poor = {
        scope: client.using(await insert_key(db, scopes=(scope,), operator=True))
        for scope in ("users:read", "keys:read")
    }
    for name, registered in METHODS.items():
        another = next(key for scope, key in poor.items() if scope != registered.scope)
        params = registered.examples[0].params | {"instance": "MYINSTANCE"}
        assert await another.outcome(name, params) == (403, "not-allowed"), name


def test_the_example_token_has_the_documented_form() -> None:
    assert len(EXAMPLE_TOKEN) == 40 and EXAMPLE_TOKEN.isalnum()
