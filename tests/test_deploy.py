"""The samples of scripts/deploy with real proxies, poolers and services.

Needs Debian's nginx-light, haproxy, pgbouncer and prometheus (for promtool), which CI installs.
"""

import asyncio
import csv
import io
import os
import pwd
import re
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import processes
import psutil
import pytest
from aiohttp import ClientSession, web
from conftest import ADMIN, Client, Serve, insert_key, until

from server.base.error_codes import ERROR_CODES

SAMPLES = Path(__file__).parent.parent / "scripts" / "deploy"
PATH = os.environ["PATH"] + ":/usr/sbin"


def installed(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not shutil.which(program, path=PATH), reason=f"{program} is not installed")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def running(*command: str | Path, port: int) -> AsyncIterator[None]:
    """A program until the end of the block, once its port is open."""
    process = subprocess.Popen(command, env=os.environ | {"PATH": PATH})
    try:
        async with asyncio.timeout(20):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    assert process.poll() is None, "it ended at once"
                    await asyncio.sleep(0.05)
                else:
                    writer.close()
                    break
        yield
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait)


def nginx(folder: Path, upstream: int, port: int) -> list[str | Path]:
    sample = (SAMPLES / "nginx.conf").read_text()
    sample = sample.replace("127.0.0.1:8080", f"127.0.0.1:{upstream}").replace(
        "listen 8443", f"listen 127.0.0.1:{port}"
    )
    scratch = "\n".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/error.log;\nevents {{}}\n"
        f"http {{ access_log off; {scratch}\n{sample} }}"
    )
    return ["nginx", "-e", folder / "error.log", "-c", folder / "nginx.conf"]


def haproxy(folder: Path, upstream: int, port: int, second: int | None = None) -> list[str | Path]:
    sample = (SAMPLES / "haproxy.cfg").read_text()
    for ours, theirs in (
        ("127.0.0.1:8080", f"127.0.0.1:{upstream}"),
        ("127.0.0.1:8443", f"127.0.0.1:{port}"),
        ("/run/haproxy", str(folder)),
        ("# server two 127.0.0.1:8081", f"server two 127.0.0.1:{second}" if second else "#"),
    ):
        assert ours in sample
        sample = sample.replace(ours, theirs)
    (folder / "haproxy.cfg").write_text(sample)
    return ["haproxy", "-db", "-q", "-f", folder / "haproxy.cfg"]


PROXIES = [
    pytest.param(nginx, id="nginx", marks=installed("nginx")),
    pytest.param(haproxy, id="haproxy", marks=installed("haproxy")),
]
Proxy = Callable[[Path, int, int], list[str | Path]]


@pytest.mark.parametrize("proxy", PROXIES)
async def test_get_with_a_body_behind_a_proxy(proxy: Proxy, serve: Serve, tmp_path: Path) -> None:
    """Line 20 of the faults: it arrives whole, through kept connections, and is never answered from memory."""
    direct = await serve(trusted_proxies=["127.0.0.0/8"])
    port = free_port()
    upstream = urlsplit(direct.url).port
    assert upstream
    async with running(*proxy(tmp_path, upstream, port), port=port):
        client = Client(direct.http, f"http://127.0.0.1:{port}", direct.key, direct.dispatcher)
        for verb in ("GET", "POST"):
            email = f"{verb.lower()}@example.com"
            assert (await client.call("createUser", {"email": email}, verb=verb))["email"] == email
            for active in (False, True):
                await client.call("updateUserByEmail", {"email": email, "isActive": active}, verb=verb)
                found = await client.call("getUserByEmail", {"email": email}, verb=verb)
                assert found["isActive"] is active
        async with client.http.get(client.url + "/metrics") as response:
            assert response.status == 404


@pytest.mark.parametrize("proxy", PROXIES)
async def test_a_proxy_never_repeats_a_call(proxy: Proxy, client: Client, tmp_path: Path) -> None:
    """An upstream that takes a request and dies sees it once: a creation must not be sent twice."""
    seen: list[bytes] = []

    async def die(request: web.Request) -> web.Response:
        if request.path == "/readyz":
            return web.Response()
        seen.append(await request.read())
        assert request.transport
        request.transport.abort()
        return web.Response()

    runner = web.ServerRunner(web.Server(die))  # type: ignore[arg-type]
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    upstream, port = runner.addresses[0][1], free_port()
    async with running(*proxy(tmp_path, upstream, port), port=port):
        behind = Client(client.http, f"http://127.0.0.1:{port}", client.key, client.dispatcher)
        async with await behind.post({"method": "createUser"}, verb="GET") as response:
            assert response.status == 502
    await runner.cleanup()
    assert len(seen) == 1


@installed("haproxy")
@pytest.mark.slow
async def test_a_rolling_restart(database_url: str, db: asyncpg.Connection, tmp_path: Path) -> None:
    """The steps of scripts/README.md: drained, restarted and let in again, two servers lose no call."""
    key = await insert_key(db)
    ports = [processes.free_port(), processes.free_port()]
    port = free_port()
    with processes.running(database_url) as officerpc:
        servers = [await officerpc.serve(port=each) for each in ports]
        async with running(*haproxy(tmp_path, *(ports[0], port, ports[1])), port=port):

            async def admin(command: str) -> str:
                reader, writer = await asyncio.open_unix_connection(tmp_path / "admin.sock")
                writer.write(command.encode() + b"\n")
                answer = (await reader.read()).decode()
                writer.close()
                return answer

            async def state(server: str) -> str:
                rows = csv.DictReader(io.StringIO((await admin("show stat")).lstrip("# ")))
                (found,) = [row for row in rows if row["svname"] == server]
                return found["status"]

            async def is_up(server: str) -> bool:
                return await state(server) == "UP"

            stopped, calls = asyncio.Event(), 0

            async def call_without_end() -> None:
                nonlocal calls
                async with ClientSession() as http:
                    while not stopped.is_set():
                        body = {"method": "getUserByEmail", "params": {"email": ADMIN}}
                        async with http.post(
                            f"http://127.0.0.1:{port}/rpc", json=body, headers={"x-api-key": key}
                        ) as response:
                            assert response.status == 200, await response.text()
                            calls += 1
                        await asyncio.sleep(0.01)

            await until(lambda: is_up("two"))
            clients = [asyncio.create_task(call_without_end()) for _ in range(4)]
            for place, name in enumerate(("one", "two")):
                await admin(f"set server officerpc/{name} state drain")
                assert await servers[place].stop() == 0
                servers[place] = await officerpc.serve(port=ports[place])
                await admin(f"set server officerpc/{name} state ready")
                await until(lambda name=name: is_up(name))
                before = calls

                async def went_on(before: int = before) -> bool:
                    return calls > before + 20 or any(client.done() for client in clients)

                await until(went_on)
            stopped.set()
            await asyncio.gather(*clients)


# --- backup and restore -------------------------------------------------------------------------------


async def test_backup_and_restore(
    client: Client, serve: Serve, db: asyncpg.Connection, database_url: str
) -> None:
    """The steps of scripts/README.md: what was dumped serves from another database, and goes on from there."""
    pid = await db.fetchval("SELECT pg_backend_pid()")
    binaries = Path(psutil.Process(pid).exe()).parent
    created = await client.call(
        "createUsers", {"users": [{"email": f"u{n}@example.com"} for n in range(200)]}
    )
    assert len(created["results"]) == 200
    seen = await client.call("listChanges", {"limit": 1000})
    other = urlsplit(database_url).path[1:] + "_restored"
    restored = database_url.replace(urlsplit(database_url).path + "?", f"/{other}?")
    dump = Path(urlsplit(database_url).query.removeprefix("host=").replace("%2F", "/")) / f"{other}.dump"

    async def run(program: str, *arguments: str | Path) -> None:
        process = await asyncio.create_subprocess_exec(binaries / program, *arguments, cwd="/")
        assert await process.wait() == 0, program

    await run("pg_dump", "-Fc", "-f", dump, database_url)
    await db.execute(f"CREATE DATABASE {other}")
    try:
        await run("pg_restore", "--no-owner", "--exit-on-error", "-d", restored, dump)
        await run("vacuumdb", "-q", "--analyze-only", "-d", restored)
        copy = await serve(url=restored)
        copy = copy.using(client.key)
        assert (await copy.call("getUserByEmail", {"email": "u7@example.com"}))["email"] == "u7@example.com"
        await copy.call("createUser", {"email": "new@example.com"})
        news = await copy.call("listChanges", {"cursor": seen["cursor"]})
        assert [event["data"]["after"]["email"] for event in news["events"]] == ["new@example.com"]
        await copy.http.close()
    finally:
        dump.unlink(missing_ok=True)
        await db.execute(f"DROP DATABASE {other} WITH (FORCE)")


# --- alerts -------------------------------------------------------------------------------------------


async def test_alerts_name_metrics_that_exist(client: Client) -> None:
    """Each series of the rules is one of a family that /metrics declares."""
    async with client.http.get(client.url + "/metrics") as response:
        families = set(re.findall(r"^# TYPE (\w+)", await response.text(), re.MULTILINE))
    rules = (SAMPLES / "alerts.yml").read_text()
    named = set(re.findall(r"\b(officerpc_\w+|process_\w+)", rules))
    assert len(named) > 5
    assert {re.sub("_bucket$", "", name) for name in named} <= families
    assert len(re.findall("alert: ", rules)) == len(re.findall("expr: ", rules)) > 5


def test_alerts_know_every_503() -> None:
    """Each code with that status belongs to a rule, and no rule names a code that is none."""
    named = set()
    for codes in re.findall(r'calls_total\{code=~?"([^"]+)"', (SAMPLES / "alerts.yml").read_text()):
        named |= set(codes.split("|"))
    assert {name for name, code in ERROR_CODES.items() if code.status == 503} <= named <= set(ERROR_CODES)


async def test_alerts_watch_every_gauge(client: Client) -> None:
    """Each gauge that is ours has a rule."""
    async with client.http.get(client.url + "/metrics") as response:
        gauges = set(re.findall(r"^# TYPE (officerpc_\w+) gauge", await response.text(), re.MULTILINE))
    rules = (SAMPLES / "alerts.yml").read_text()
    assert gauges and {gauge for gauge in gauges if gauge not in rules} == set()


@installed("promtool")
def test_promtool_accepts_the_alerts() -> None:
    done = subprocess.run(
        ["promtool", "check", "rules", SAMPLES / "alerts.yml"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_unit_allows_many_connections() -> None:
    """systemd's and many systems' default of open files is 1024."""
    for name in ("officerpc.service", "officerpc-work.service"):
        unit = (SAMPLES / name).read_text()
        assert "\nLimitNOFILE=65536\n" in unit and "\nRestartSec=5\n" in unit


@asynccontextmanager
async def pgbouncer(database_url: str, folder: Path, mode: str) -> AsyncIterator[str]:
    """The address of a pooler before the database."""
    parts = urlsplit(database_url)
    socket_dir = parse_qs(parts.query)["host"][0]
    port = free_port()
    users = folder / "users.txt"
    users.write_text('"postgres" ""\n')
    config = folder / "pgbouncer.ini"
    config.write_text(
        f"[databases]\n{parts.path[1:]} = host={socket_dir} user=postgres\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nauth_type = trust\nauth_file = {users}\n"
        f"pool_mode = {mode}\ndefault_pool_size = 2\nunix_socket_dir =\n"
    )
    # It refuses to run as root; the user of the database server can reach its socket.
    owner = pwd.getpwuid(Path(socket_dir).stat().st_uid).pw_name
    as_user = ["-u", owner] if os.geteuid() == 0 else []
    for path in (folder, *list(folder.parents)[:2]) if as_user else ():
        path.chmod(0o755)
    async with running("pgbouncer", "-q", *as_user, config, port=port):
        yield f"postgresql://postgres@127.0.0.1:{port}{parts.path}"


@installed("pgbouncer")
@pytest.mark.parametrize("mode", ["session", "transaction"])
async def test_a_pooler_without_a_direct_address(
    mode: str, officerpc: Any, database_url: str, tmp_path: Path
) -> None:
    """Status 1 and a line that says which setting is missing, from the server and from commands."""
    async with pgbouncer(database_url, tmp_path, mode) as url:
        for words in (("serve",), ("users", "list", "--instance", "MYINSTANCE")):
            ended = await officerpc(*words, OFFICERPC_DATABASE_URL=url, OFFICERPC_PORT=str(free_port()))
            assert ended.status == 1
            assert "unsupported startup parameter" in ended.err
            assert "Set OFFICERPC_DATABASE_DIRECT_URL" in ended.err and "Traceback" not in ended.err


@installed("pgbouncer")
async def test_behind_a_transaction_pooler(serve: Serve, database_url: str, tmp_path: Path) -> None:
    """Many calls at once over two server connections that change hands after each transaction."""
    async with pgbouncer(database_url, tmp_path, "transaction") as url:
        client = await serve(url=url, database_direct_url=database_url)

        async def work(number: int) -> None:
            email = f"user{number}@example.com"
            await client.call("createUser", {"email": email})
            await client.call("updateUserByEmail", {"email": email, "displayName": str(number)})
            found = await client.call("getUserByEmail", {"email": email})
            assert (found["email"], found["displayName"]) == (email, str(number))

        await asyncio.gather(*(work(number) for number in range(40)))
        assert len((await client.call("listUsers"))["users"]) == 41
        created = await client.call("createApiKey", {"name": "shop", "scopes": ["users:read"]})
        shop = client.using(created["key"])
        await shop.call("getUserByEmail", {"email": ADMIN})
        await client.call("revokeApiKey", {"id": created["id"]})
        assert (await shop.outcome("getUserByEmail", {"email": ADMIN}))[0] == 401


@pytest.mark.parametrize("unit", ["officerpc.service", "officerpc-work.service"])
def test_units_wait_before_they_start_again(unit: str) -> None:
    """Without a pause systemd gives up after five failures within ten seconds."""
    lines = (SAMPLES / unit).read_text().splitlines()
    assert {"Restart=on-failure", "RestartSec=5"} <= set(lines)
