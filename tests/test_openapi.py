"""The OpenAPI document against the server, with schemathesis."""

import asyncio
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from conftest import Client, Serve
from openapi_spec_validator import OpenAPIV31SpecValidator

from server.base.error_codes import ERROR_CODES
from server.methods.registry import METHODS
from server.serving.app import WIRES as SERVED
from server.serving.app import openapi
from server.wires import files, rpc
from server.wires.openapi import document
from server.wires.schemas import Schemas

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def described() -> Any:
    return json.loads(openapi())


def operations(described: Any) -> dict[tuple[str, str], Any]:
    """Every operation by its verb and its path, server prefixes included."""
    return {
        (verb.upper(), server["url"].rstrip("/") + path): operation
        for path, item in described["paths"].items()
        for server in item.get("servers", described["servers"])
        for verb, operation in item.items()
        if verb != "servers"
    }


def test_the_document_is_valid(described: Any) -> None:
    """Against the official schema of OpenAPI 3.1, and all references resolve."""
    assert list(OpenAPIV31SpecValidator(described).iter_errors()) == []
    assert list(OpenAPIV31SpecValidator(described | {"info": {"title": "x"}}).iter_errors())
    identifiers = [
        operation["operationId"]
        for item in described["paths"].values()
        for name, operation in item.items()
        if name != "servers"
    ]
    assert len(set(identifiers)) == len(identifiers)
    for target in re.findall(r'"operationId": "([^"]+)", "parameters"', json.dumps(described)):
        assert target in identifiers


def shape(path: str) -> str:
    """A path without the names of its parts."""
    return re.sub(r"{\w+}", "{}", path).rstrip("/")


def test_the_document_has_every_route_and_no_other(described: Any) -> None:
    """A route may have a twin with or without its trailing slash, which is not described."""
    routes = set()
    for wire in SERVED:
        if wire is not rpc.WIRE:
            router = web.Application().router
            wire.add_routes(router)
            routes |= {
                (route.method, shape(route.resource.canonical))
                for route in router.routes()
                if route.resource is not None and route.method != "HEAD"
            }
    assert {(verb, shape(path)) for verb, path in operations(described)} == routes


def test_the_document_tells_who_serves(described: Any) -> None:
    for (verb, path), operation in operations(described).items():
        assert set(operation["x-method"]) <= set(METHODS), path
        assert operation["summary"] and operation["responses"], path
        if verb in ("POST", "PUT") and "requestBody" in operation:
            (content,) = operation["requestBody"]["content"].values()
            assert content["examples"], path


def parts(value: Any) -> Iterator[Any]:
    """Every object in a JSON value."""
    if isinstance(value, dict):
        yield value
    if isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from parts(part)


def test_every_array_has_items_and_every_enum_one_type(described: Any) -> None:
    """Generators of clients leave out what has not."""
    for part in parts(described):
        assert part.get("type") != "array" or "items" in part, part
        if isinstance(part.get("enum"), list):
            assert len({type(value) for value in part["enum"]}) == 1 and "type" in part, part


def test_the_document_tells_what_every_wire_takes_and_answers(described: Any) -> None:
    components = described["components"]
    assert components["headers"]["X-Error-Code"]["schema"]["enum"] == list(ERROR_CODES)
    for (_, path), operation in operations(described).items():
        writes = any(METHODS[name].writes for name in operation["x-method"])
        shared = {one["$ref"].rpartition("/")[2] for one in operation["parameters"] if "$ref" in one}
        assert shared == ({"Idempotency-Key", "Dry-Run"} if writes else set()), path
        for name in operation["x-method"]:
            assert set(METHODS[name].errors) <= set(operation["x-error-codes"]) <= set(ERROR_CODES)
        for status, response in operation["responses"].items():
            if "$ref" in response:
                response = components["responses"][response["$ref"].rpartition("/")[2]]
                codes = re.findall("^- `([a-z_]+)`: ", response["description"], re.MULTILINE)
                assert codes and set(codes) <= set(ERROR_CODES), path
            headers = set(response["headers"])
            assert {"X-Request-Id", "X-Error-Code"} <= headers
            assert not operation["security"] or {"RateLimit", "RateLimit-Policy"} <= headers
            assert not path.startswith("/integration-api/") or "X-RateLimit-Remaining" in headers
            assert not (writes and status[0] == "2") or {"Idempotency-Replayed", "Dry-Run"} <= headers


async def test_the_limits_headers_are_those_that_are_sent(serve: Serve, described: Any) -> None:
    client = await serve(key_rate_limit=50)
    url = f"{client.url}/integration-api/v1/dashboard/users?email=nobody"
    async with client.http.get(url, headers={"X-User-Token": client.key}) as response:
        sent = {name for name in response.headers if "RateLimit" in name}
    operation = described["paths"]["/integration-api/v1/dashboard/users"]["get"]
    assert sent == {name for name in operation["responses"]["200"]["headers"] if "RateLimit" in name}
    assert {"query", "email"} <= {parameter["name"] for parameter in operation["parameters"]}


WIRES = ("rpc", "online_office", "workspace365", "publica", "scim")
PREFIXES = {
    "/online-office/": "online_office",
    "/Provisioning/": "workspace365",
    "/integration-api/v1/": "publica",
    "/scim/v2/": "scim",
}


def test_the_readme_has_every_function(described: Any) -> None:
    """Each in a row of its wire, with the method that serves it, and nothing that there is not."""
    served: dict[tuple[str, str], set[str]] = {
        ("rpc", name): {name} for name, registered in METHODS.items() if not registered.extension
    }
    for (verb, path), operation in operations(described).items():
        for prefix, wire in PREFIXES.items():
            if path.startswith(prefix):
                name = shape(path.removeprefix(prefix).removeprefix("{instance}/"))
                served[wire, f"{verb} {name}"] = set(operation["x-method"])
    text = (HERE.parent / "README.md").read_text()
    found: dict[tuple[str, str], set[str]] = {}
    section = text.split("## Function by function")[1].split("\n## ")[0]
    for row in [line for line in section.splitlines() if line.startswith("|")][2:]:
        cells = [re.findall("`([^`]+)`", cell) for cell in row.split("|")[2:8]]
        functions = [(wire, shape(name)) for wire, names in zip(WIRES, cells, strict=False) for name in names]
        methods = set(cells[5])
        assert functions and methods <= set(METHODS), row
        assert methods <= {method for one in functions for method in served[one]}, row
        for one in functions:
            found.setdefault(one, set()).update(methods)
    assert set(found) == set(served)
    for one, methods in served.items():
        assert methods <= found[one], one


async def test_the_document_can_be_printed(described: Any, officerpc: Any) -> None:
    assert (await officerpc("openapi")).json == described


async def test_the_document_is_served_without_a_key(client: Client, described: Any) -> None:
    async with client.http.get(client.url + "/openapi.json") as response:
        assert response.status == 200 and response.content_type == "application/json"
        assert await response.json() == described
    async with client.http.post(client.url + "/openapi.json") as response:
        assert response.status == 405


def test_two_of_a_name_are_refused() -> None:
    schemas = Schemas(METHODS)
    assert schemas.component("One", {"type": "string"}) == schemas.component("One", {"type": "string"})
    with pytest.raises(ValueError, match="called One"):
        schemas.component("One", {"type": "integer"})
    with pytest.raises(ValueError, match="two operations"):
        document(METHODS.values(), [files.WIRE, files.WIRE])


# --- schemathesis -------------------------------------------------------------------------------------


async def schemathesis(
    client: Client, location: str, paths: str, phases: str, directory: Path
) -> tuple[int | None, str]:
    """The status and the report of a run on the paths that match, with every check on."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()",
        "--config-file", str(HERE / "data" / "schemathesis.toml"),
        "run", location, "--url", client.url, "--include-path-regex", paths, "--phases", phases,
        "--max-examples", "25" if phases == "stateful" else "5", "--header", f"x-api-key: {client.key}",
        env=os.environ | {"PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}", "NO_COLOR": "1"},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd=directory,
    )  # fmt: skip
    try:
        out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    return process.returncode, out.decode()


ONE_BY_ONE = "examples,coverage,fuzzing"
RUNS = {
    "online_office": (r"^/online-office/", ONE_BY_ONE),
    "online_office, by its links": (r"^/online-office/", "stateful"),
    # The same functions again, but for the type of user, which has to be told here.
    "main_app": (r"^/main-app/user/(check-auth|exists|set-password)$", ONE_BY_ONE),
    "files": (r"^/files/", ONE_BY_ONE),
    "workspace365": (r"^/Provisioning/{", ONE_BY_ONE),
    "workspace365, by its links": (r"^/Provisioning/{", "stateful"),
    "workspace365, environments": (r"^/Provisioning/Environment/", ONE_BY_ONE),
    "workspace365, environments by their links": (r"^/Provisioning/Environment/", "stateful"),
    "publica": (r"^/integration-api/", ONE_BY_ONE),
    "publica, users by their links": (r"^/integration-api/v1/dashboard/users", "stateful"),
    "publica, plans by their links": (r"^/integration-api/v1/dashboard/plans", "stateful"),
    # The same beneath the name of an instance.
    "scim": (r"^/scim/v2/(?!{)", ONE_BY_ONE),
    "scim, by its links": (r"^/scim/v2/(?!{)", "stateful"),
}


@pytest.fixture
async def client(serve: Serve) -> Client:
    """Without a limit of calls a minute."""
    return await serve(rate_limit=0)


@pytest.fixture
async def world(client: Client, jane: dict[str, Any]) -> None:
    """The users 1 to 6, and with them accounts 1 to 5, and plans 1 to 6, which tests/data/schemathesis.toml knows."""
    for name in ("ann", "bob", "cem", "dia"):
        profile = {"firstname": name, "lastname": "Member"}
        await client.call(
            "createMember", {"login": f"{name}@one.example", "sponsorId": 1, "profile": profile}
        )
    for months in range(1, 7):
        plan = {"type": "prepaid", "name": f"{months} months", "duration": months}
        await client.call("createPlan", plan)


@pytest.mark.schemathesis
@pytest.mark.parametrize("name", RUNS)
async def test_schemathesis_finds_nothing(
    name: str, client: Client, operator: Client, world: None, tmp_path: Path
) -> None:
    client = operator if "environments" in name else client
    status, report = await schemathesis(client, f"{client.url}/openapi.json", *RUNS[name], tmp_path)
    assert status == 0, report


@pytest.mark.schemathesis
async def test_schemathesis_would_find(client: Client, world: None, described: Any, tmp_path: Path) -> None:
    """What a document says wrongly: who may call, what is answered, what must be sent, and what is refused."""
    wrong = json.loads(json.dumps(described))
    paths = {path: wrong["paths"][f"/online-office/{path}"] for path in ("user/exists", "user/search")}
    wrong["paths"] = {f"/online-office/{path}": item for path, item in paths.items()}
    wrong["components"]["schemas"]["FoundUsers"]["properties"]["total"] = {"type": "string"}
    for parameter in paths["user/search"]["get"]["parameters"]:
        parameter["required"] = False
    for parameter in paths["user/exists"]["get"]["parameters"]:
        parameter["schema"]["maxLength"] = 20
    wrong["paths"]["/livez"] = {
        "get": paths["user/exists"]["get"] | {"operationId": "livez", "parameters": []}
    }
    (tmp_path / "wrong.json").write_text(json.dumps(wrong))
    status, report = await schemathesis(client, str(tmp_path / "wrong.json"), "", ONE_BY_ONE, tmp_path)
    assert status == 1
    for found in (
        "Schema-valid request rejected",
        "Schema-violating request accepted",
        "Response violates schema",
        "API accepts requests without authentication",
    ):
        assert found in report, report
