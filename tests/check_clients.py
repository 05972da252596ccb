"""The API documents in the hands of tools that others wrote: `make check-clients`, which needs node.

The tools stand in .venv/clients: those of scripts/clients/package.json, and openapi-python-client in a
virtual environment of its own, as it needs an older typer than ours.
"""

import asyncio
import json
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from conftest import Client, Serve, insert_key

from server.methods.registry import METHODS
from server.rpc.openrpc import document
from server.serving.app import openapi

ROOT = Path(__file__).parent.parent
TOOLS = ROOT / ".venv" / "clients"
SCRIPTS = ROOT / "scripts" / "clients"

Run = Callable[..., Awaitable[tuple[int, str]]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a command in the test's folder, where node finds its modules."""
    (tmp_path / "node_modules").symlink_to(TOOLS / "node_modules")

    async def start(*command: str | Path) -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            *map(str, command), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd=tmp_path
        )
        out, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode()

    return start


def tool(name: str) -> Path:
    """A command that npm installed."""
    return TOOLS / "node_modules" / ".bin" / name


@pytest.fixture
def openrpc_file(tmp_path: Path) -> Path:
    path = tmp_path / "openrpc.json"
    path.write_text(json.dumps(document(tuple(METHODS.values()))))
    return path


@pytest.fixture
def openapi_file(tmp_path: Path) -> Path:
    path = tmp_path / "openapi.json"
    path.write_bytes(openapi())
    return path


async def test_the_generated_typescript_client_compiles_and_calls(
    run: Run, client: Client, openrpc_file: Path, tmp_path: Path
) -> None:
    words = ["generate", "-t", "client", "-l", "typescript", "-n", "officerpc", "-o", "out"]
    words += ["-d", str(openrpc_file)]
    status, out = await run(tool("open-rpc-generator"), *words)
    assert status == 0, out
    (tmp_path / "out" / "client" / "typescript" / "src").rename(tmp_path / "src")
    for name in ("client.ts", "tsconfig.json"):
        shutil.copy(SCRIPTS / name, tmp_path / ("src" if name == "client.ts" else "") / name)
    status, out = await run(tool("tsc"), "-p", ".")
    assert status == 0, out
    status, out = await run("node", "build/client.js", client.url, client.key)
    assert status == 0, out
    assert json.loads(out) == {
        "created": {"id": 2, "email": "ann@example.com"},
        "found": {"id": 2, "isActive": False},
        "updated": True,
        "again": {"code": -32009, "data": "duplicate_email"},
    }


async def test_open_rpc_test_coverage_runs_every_example(
    run: Run, client: Client, operator: Client, examples: None, openrpc_file: Path, tmp_path: Path
) -> None:
    shutil.copy(SCRIPTS / "coverage.mjs", tmp_path)
    status, out = await run(
        "node", "coverage.mjs", openrpc_file, client.url + "/rpc", client.key, operator.key
    )
    assert status == 0, out
    wanted = sum(len(method.examples) for name, method in METHODS.items() if name != "rpc.discover")
    assert json.loads(out.splitlines()[-1]) == {"calls": wanted, "failed": 0}


async def test_spectral_finds_no_error(run: Run, openapi_file: Path) -> None:
    """Only warnings: the documented trailing slashes, and no contact."""
    status, out = await run(
        tool("spectral"), "lint", "-r", SCRIPTS / "spectral.yaml", "-F", "error", "-f", "json", openapi_file
    )
    found = json.loads(out[out.index("[") : out.rindex("]") + 1])
    assert {problem["code"] for problem in found} <= {"info-contact", "path-keys-no-trailing-slash"}, out
    assert status == 0, out


async def test_redocly_finds_nothing_but_the_documented_trailing_slashes(
    run: Run, openapi_file: Path
) -> None:
    _, out = await run(tool("redocly"), "lint", "--extends", "recommended", "--format", "json", openapi_file)
    found = json.loads(out[out.index("{") : out.rindex("}") + 1])["problems"]
    errors = [problem for problem in found if problem["severity"] == "error"]
    assert {problem["ruleId"] for problem in errors} == {"no-path-trailing-slash"}, errors


async def test_the_generated_python_client_parses_real_answers(
    run: Run, serve: Serve, db: asyncpg.Connection, openapi_file: Path, tmp_path: Path
) -> None:
    """All operations are generated, and every answer is parsed as the type that the document gives it."""
    bin_folder = TOOLS / "python" / "bin"
    words = ("generate", "--path", openapi_file, "--output-path", "generated", "--meta", "none")
    status, out = await run(bin_folder / "openapi-python-client", *words)
    assert status == 0, out
    warned = [line for line in out.splitlines() if line.startswith("WARNING")]
    assert warned == ["WARNING parsing GET /files/{name} within files."], out  # its pictures are no JSON
    client = await serve(rate_limit=0)
    operator = await insert_key(db, operator=True)
    profile = {"firstname": "Ann", "lastname": "Member"}
    await client.call("createMember", {"login": "ann@one.example", "sponsorId": 1, "profile": profile})
    status, out = await run(
        bin_folder / "python", SCRIPTS / "drive.py", tmp_path, client.url, client.key, operator
    )
    assert status == 0, out
    told: dict[str, Any] = json.loads(out.splitlines()[-1])
    described = json.loads(openapi())["paths"].values()
    assert told["operations"] == sum(name != "servers" for item in described for name in item)
    parsed: dict[str, list[Any]] = told["calls"]
    refused = {
        "online_office.post_online_office_user_delete": [200, "Failure"],
        "workspace365.post_provisioning_environment_name_user_validate": [400, "ValidationResult"],
        "publica.get_integration_api_v1_dashboard_plans_plan_id": [404, "Message"],
        "files.get_files_name": [404, "str"],
    }
    kinds = {"NoneType", "Failure", "ValidationResult", "Message", "InvalidMembers"}
    assert {name: told for name, told in parsed.items() if told[0] >= 400 or told[1] in kinds} == refused
    assert parsed["workspace365.post_provisioning_environment_name_user"] == [200, "int"]
    assert parsed["publica.get_integration_api_v1_auth_sessions"] == [200, "StoreSessions"]
    assert len(parsed) >= 20
