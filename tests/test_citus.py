"""The statements and the server on Citus: make test-citus, which needs Debian's Postgres 15 with the extension.

Every named statement runs twice on the same data: on one Postgres, and after `officerpc distribute`. Both must
give the same rows, also if sql/citus has another form of the statement.
"""

import asyncio
import contextlib
import datetime
import functools
import json
import re
import uuid
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import cluster
import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer
from conftest import ADMIN, FAST_HASHES, LINK_HOST, Client, Serve
from processes import eventually, exchange, running

from server.base.errors import ConnectionLost, ServiceError
from server.base.settings import Settings
from server.base.tokens import digest
from server.directory.creation import LAYOUT
from server.methods.avatars import EXAMPLE_NAME
from server.methods.codes import EXAMPLE_CODES
from server.methods.registry import METHODS
from server.methods.sessions import EXAMPLE_TOKEN
from server.methods.webhooks import EXAMPLE_EVENT
from server.postgres import distribution
from server.postgres.db import Connection, Database
from server.postgres.migrations import load_migrations, migrate
from server.postgres.queries import NamedQuery, load_queries
from server.serving.app import build
from server.tenants.call import RequestContext
from server.tenants.keys import new_key
from server.tenants.principals import OPERATOR

NOTHING_FOUND = {"mend_event_clock"}
"""Statements that give no rows here."""


# --- the cluster --------------------------------------------------------------------------------------


async def distribute(ports: list[int], database_url: str) -> None:
    """What an operator does, but that the test's own servers run on: nobody calls them meanwhile."""
    await cluster.prepare(ports, urlsplit(database_url).path[1:])
    coordinator = await asyncpg.connect(database_url)

    async def allowed(_: asyncpg.Connection) -> None: ...

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distribution, "_refuse_servers", allowed)
        await distribution.distribute(coordinator, load_migrations())
    await coordinator.close()


@pytest.fixture
async def database_url(migrated_url: str) -> str:
    """The same with MYINSTANCE and its administrator; the fixtures of conftest.py work on it."""
    database, _, hasher, dispatcher = build(Settings(**FAST_HASHES), migrated_url)
    await database.open()
    mine = {"name": "MYINSTANCE", "admin": {"email": ADMIN}, "settings": {"confirmationHosts": [LINK_HOST]}}
    await dispatcher.call(OPERATOR, "createInstance", mine, RequestContext("test"))
    hasher.close()
    dispatcher.pictures.close()
    await database.close()
    return migrated_url


# --- every named statement ----------------------------------------------------------------------------

NOW = datetime.datetime.now(datetime.UTC)
TODAY, TOMORROW = NOW.date(), NOW + datetime.timedelta(days=1)
LONG_AGO = "now() - interval '400 days'"
MORE = f"""
UPDATE users SET deleted_at = {LONG_AGO} WHERE deleted_at IS NOT NULL;
UPDATE users SET external_id = 'jane' WHERE id = 2;
UPDATE users SET is_active = false, suspended_at = now() WHERE id = 5;
UPDATE credentials SET password_hash = 'hash' WHERE user_id = 2;
UPDATE api_keys SET digest = 'key' WHERE id = 1;
UPDATE instance_counters SET webhooks = 4, sessions = 90, user_plans = 90;
DELETE FROM mailboxes WHERE user_id = 5 AND role = 'drafts';
DELETE FROM calendars WHERE user_id = 5;
DELETE FROM file_folders WHERE user_id = 5 AND role = 'trash';
INSERT INTO user_plans (instance_id, id, user_id, plan_id, valid_from, valid_to)
VALUES (1, 90, 2, 1, '2020-01-01', '2020-12-31');
INSERT INTO sessions (instance_id, id, user_id, token_digest, expires_at) VALUES (1, 90, 2, 'old', {LONG_AGO});
INSERT INTO codes (instance_id, digest, user_id, purpose, expires_at) VALUES (1, 'old', 2, 'reset', {LONG_AGO});
INSERT INTO idempotency_keys (instance_id, key_id, name, request, answer, created_at)
VALUES (1, 1, 'old', 'r', 'a', {LONG_AGO}), (1, 1, 'name', 'r', 'a', now());
INSERT INTO login_failures (instance_id, subject, forgiven_at, delayed_until)
VALUES (1, 'old', {LONG_AGO}, {LONG_AGO}), (1, 'subject', now() + interval '1 hour', now() + interval '1 hour');
INSERT INTO documents (instance_id, id, entity, action, user_id, created_at)
VALUES (1, gen_random_uuid(), 'user', 'profile-update', 2, {LONG_AGO});
INSERT INTO pgqueuer (id, priority, status, entrypoint, updated) VALUES (1001, 0, 'failed', 'mail-code', {LONG_AGO});
INSERT INTO jobs (instance_id, id, kind, state, attempts, due_at)
VALUES (1, 2001, 'mail-code', 'parked', 15, {LONG_AGO}), (1, 2002, 'mail-code', 'running', 1, now());
INSERT INTO events (instance_id, place, id, type, user_id, method, key_id, key_name, request_id, created_at)
VALUES
(1, 100, gen_random_uuid(), 'user.created', 2, 'createUser', 1, 'test', 'old', {LONG_AGO}),
(1, 101, '{EXAMPLE_EVENT}', 'user.created', 2, 'createUser', 1, 'test', 'new', now());
INSERT INTO webhooks (
    instance_id, id, url, description, types, secret, old_secret, old_secret_until, deleted_at, failing_since, read_xid
)
VALUES
(1, 2, '', '', '{{}}', '', NULL, NULL, now(), NULL, '0'),
(1, 3, '', '', '{{}}', '', NULL, NULL, now(), NULL, '0'),
(1, 4, 'https://192.0.2.1/', '', '{{}}', 'new', 'old', {LONG_AGO}, NULL, {LONG_AGO}, '0');
INSERT INTO deliveries (instance_id, webhook_id, event_id, type, body, state, created_at)
VALUES
(1, 2, gen_random_uuid(), 'user.created', '', 'delivered', now()),
(1, 4, gen_random_uuid(), 'user.created', '', 'delivered', {LONG_AGO}),
(1, 4, '{EXAMPLE_EVENT}', 'user.created', '', 'pending', now());
INSERT INTO office365_accounts (instance_id, user_id, state) VALUES (1, 2, 'pending');
INSERT INTO group_members (instance_id, user_id, group_id) VALUES (1, 2, 1);
"""
"""Rows for statements that find none in the examples: most look for what has had its time."""

USER = {
    "email": "new@example.com", "email_key": "new@example.com", "display_name": "New", "is_active": True,
    "is_admin": False, "is_confirmed": True, "profile": {}, "app_values": {}, "settings": [0], "apps": [0],
    "avatar": "", "fields": {}, "language": "en", "external_id": "new", "sessions_limit": 3,
    "is_plan_admin": False, "only_sees_readable": False, "mail_quota": None, "files_quota": None,
    "password_hash": "hash", "attributes": {"nickName": "New"},
}  # fmt: skip
LOGIN = {"login": "newbie", "login_key": "newbie"}
NEW_USER = USER | LOGIN | {"number": 0, "event": {"email": "new@example.com"}}
CHANGED_USER = USER | LOGIN | {
    "id": 2, "confirmed_at": NOW, "suspended_at": None, "deleted_at": None, "moment": NOW,
    "has_new_login": True, "has_new_avatar": True, "moves_account": True,
    "ends_sessions": True, "ended_codes": ["reset"],
}  # fmt: skip
EVENT_ID = uuid.UUID(EXAMPLE_EVENT)
BY_TYPE: dict[str, Any] = {
    "int4": 1, "int8": 1, "float8": 60.0, "text": "x", "bool": True, "bytea": b"x", "jsonb": {}, "uuid": EVENT_ID,
    "timestamptz": NOW, "date": TODAY, "int4[]": [1], "int8[]": [1], "text[]": ["x"], "bytea[]": [b"x"],
    "jsonb[]": [None], "uuid[]": [EVENT_ID], "bool[]": [True], "float8[]": [60.0], "date[]": [TODAY],
}  # fmt: skip
"""The value of a parameter by its type, unless it has one by its name or for its statement."""
BY_NAME: dict[str, Any] = {name: value for name, value in USER.items() if name != "settings"} | {
    "user_id": 2, "user_ids": [2], "shown_ids": [2], "ids": [1, 2, 3], "users": [USER], "event": {"email": "new@example.com"},
    "email_key": "jane@example.com", "email_keys": ["jane@example.com"], "key": "jane@example.com",
    "keys": ["jane@example.com"], "external_id": "jane", "external_ids": ["jane"],
    "after": 0, "after_instance": 0, "after_user": 0, "after_webhook": 0, "last_instance": 9, "last_user": 99,
    "before": 99, "row_limit": 100, "row_offset": 0, "byte_limit": 1000000, "batch_size": 100, "look": 100, "looks": 9,
    "since": NOW - datetime.timedelta(days=1000), "until": TOMORROW, "before_time": TOMORROW, "before_xid": "0",
    "before_seq": 0, "after_seq": 0, "xid": "0", "seq": 0, "horizon": str(2**62), "type": None, "method": None,
    "name_key": "sales", "name_keys": ["sales"], "token_digest": digest(EXAMPLE_TOKEN),
    "digest": digest(EXAMPLE_CODES["reset"]), "purpose": "reset", "purposes": ["reset"],
    "tree_id": 0, "document_id": uuid.UUID(int=0x40008000000000000001), "instance_name": "MYINSTANCE",
    "instance_names": ["MYINSTANCE"], "networks": [], "maker_id": None, "name": "name", "subject": b"old",
    "subjects": [b"subject"], "types": ["user.updated"], "states": ["pending"], "state": "failed",
    "webhook_id": 4, "webhook_ids": [4], "valid_to": None, "last_day": None, "from_day": None, "starts_with": "",
    "name_part": "", "sorts": ["user"], "tie": "user", "walks": ["user"],
    "pattern": "%", "searched": "e", "walk_rows": 1000, "wanted": 100, "most": 100,
    "path": "i1.t0.1", "depth": 10, "because": "tests", "default_days": 30, "job_id": 1000, "kind": "mail-code",
    "given": [], "others": [],
}  # fmt: skip
BY_STATEMENT: dict[str, dict[str, Any]] = {
    "add_position": {"tree_id": 1, "parent_id": None},
    "analyze_table": {"name": "users"},
    "assign_plans": {"user_ids": [1]},
    "begin_office365": {"user_id": 4},
    "claim_deliveries": {"lanes": [4]},
    "claim_jobs": {"lanes": ["mail-code"]},
    "find_due_jobs": {"after_lane": ""},
    "find_due_webhooks": {"after_lane": 0},
    "renew_leases": {"job_ids": [2002]},
    "settle_jobs": {"job_ids": [2002], "outcomes": ["retried"], "due_ins": [5.0]},
    "change_plan": {"type": "prepaid"},
    "claim_idempotency_key": {"name": b"new"},
    "create_document": {"tree_id": 0, "document_id": uuid.UUID(int=7)},
    "create_group": {"name_key": "buyers"},
    "create_instance": {"name": "ANOTHER"},
    "create_plan": {"type": "prepaid"},
    "create_session": {"token_digest": b"new"},
    "create_users": {"users": [NEW_USER], "layout": LAYOUT, "login_count": 1, "method": "createUser"},
    "define_field": {"alias": "hat_size", "type": "number"},
    "end_plan": {"user_id": 1},
    "find_answer": {"name": b"name"},
    "find_created_by": {"request_id": "new"},
    "find_instance": {"name": "MYINSTANCE"},
    "find_key": {"digest": b"key"},
    "find_key_instance": {"name": "MYINSTANCE"},
    "get_picture": {"name": EXAMPLE_NAME},
    "get_event": {"event_id": EVENT_ID},
    "insert_deliveries": {"event_ids": [uuid.UUID(int=7)]},
    "insert_events": {"method": "updateUser"},
    "issue_code": {"digest": b"new"},
    "keep_answer": {"name": b"name"},
    "list_active_plans": {"user_id": 1},
    "list_groups": {"after": ""},
    "list_instances": {"after": ""},
    "list_jobs": {"state": "parked"},
    "list_users": {"after": "", "status": "all"},
    "move_position": {"position_id": 3, "parent_id": 1},
    "name_newest_plan": {"user_id": 1},
    "remove_field": {"alias": "shoe_size"},
    "repair_user": {"user_id": 5, "mailboxes": ["drafts"], "calendars": ["main"], "folders": ["trash"]},
    "search_scim_groups": {"most_members": 1000, "predicate": "exists($)", "sort": '$.folded."id"'},
    "search_scim_users": {"predicate": "exists($)", "sort": '$.folded."id"'},
    "skip_events": {"look": 1},
    "switch_plan": {"user_id": 1},
    "write_users": {"ids": [2], "users": [CHANGED_USER]},
    "write_effects": {"ids": [2], "users": [CHANGED_USER], "logins": 1, "living": 0},
}
VARYING = {
    "create_instance", "create_key", "enqueue_job", "find_feed_end", "find_feed_halt", "find_grown_table", "find_server_facts",
    "find_tables_without_statistics",
}  # fmt: skip
"""What these do depends on the server, or on the next number of a sequence."""
TIMES = {
    "age", "createdAt", "created_at", "expiresAt", "expires_at", "horizon", "moment", "oldSecretUntil", "seconds",
    "seconds_left", "updatedAt", "xid",
}  # fmt: skip
"""Columns that differ from one time to the next."""
CHANGED = re.compile(r"(?:INSERT INTO|UPDATE|DELETE FROM) (\w+)")


async def arguments(db: asyncpg.Connection, query: NamedQuery) -> dict[str, Any]:
    """A value for each parameter: the statement's own, that of its name, or else one of its type."""
    types = (await db.prepare(query.sql)).get_parameters()
    values = BY_NAME | BY_STATEMENT.get(query.name, {})
    return {
        param: values[param] if param in values else BY_TYPE[kind.name]
        for param, kind in zip(query.params, types, strict=True)
    }


async def outcome(
    database: Database, query: NamedQuery, values: dict[str, Any]
) -> tuple[list[str], list[str]]:
    """The rows that a statement gives, and those of the tables that it writes, but for times and random ids.

    It runs on the server's own connection, with the settings that the server gives that, and is rolled back.
    """
    async with database.transaction(dry_run=True) as db:
        rows = sorted(
            repr({name: value for name, value in row.items() if name not in TIMES})
            for row in await db.all(query.name, **values)
        )
        if "INSERT INTO events" in query.sql:  # the coordinator numbers them, whichever node stores them
            newest = await db.raw.fetchval("SELECT max(xid::text::bigint) FROM events")
            assert newest == await db.raw.fetchval("SELECT pg_current_xact_id()::text::bigint"), query.name
        left = []
        for table in sorted(set(CHANGED.findall(query.sql)) - {"SET", "OF"}):
            columns = await db.raw.fetchval(
                "SELECT string_agg(format('%I::text', attname), ', ' ORDER BY attnum) FROM pg_attribute WHERE"
                " attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped"
                " AND atttypid NOT IN ('timestamptz'::regtype, 'uuid'::regtype, 'xid8'::regtype)",
                table,
            )
            if columns:
                stored = await db.raw.fetch(f"SELECT {columns} FROM {table}")
                left += sorted(f"{table} {tuple(row)}" for row in stored)
    return rows, left


async def outcomes(
    url: str, given: dict[str, dict[str, Any]], *, citus: bool
) -> tuple[dict[str, Any], dict[str, str]]:
    """The outcome of each statement, and the errors."""
    found: dict[str, Any] = {}
    errors: dict[str, str] = {}
    database = Database(Settings(), url)
    await database.open()
    queries = load_queries(citus=citus)
    for name, values in given.items():
        try:
            found[name] = await outcome(database, queries[name], values)
        except (ServiceError, asyncpg.PostgresError) as error:
            cause = error.__cause__ or error
            errors[name] = f"{type(cause).__name__}: {cause}"
            if isinstance(error, ConnectionLost):  # Postgres crashed over it, and is started again
                await eventually(functools.partial(answers, database))
    await database.close()
    return found, errors


async def answers(database: Database) -> bool:
    with contextlib.suppress(ServiceError):
        return await database.look_up("check_writable") is not None
    return False


@pytest.mark.damages
@pytest.mark.usefixtures("examples")
async def test_every_statement_runs_and_does_the_same(
    db: asyncpg.Connection, citus_ports: list[int], database_url: str
) -> None:
    """With arguments that reach rows wherever a statement gives any."""
    await db.execute(MORE)
    queries = load_queries()
    given = {name: await arguments(db, query) for name, query in queries.items()}
    before, errors = await outcomes(database_url, given, citus=False)
    assert errors == {}
    gives_rows = {name for name in queries if (await db.prepare(queries[name].sql)).get_attributes()}
    assert {name for name in gives_rows - VARYING if before[name][0] == []} == NOTHING_FOUND
    await distribute(citus_ports, database_url)
    after, errors = await outcomes(database_url, given, citus=True)
    assert errors == {}
    for name in after.keys() - VARYING:
        assert after[name] == before[name], name


@pytest.mark.damages
async def test_no_delivery_is_claimed_twice(
    db: asyncpg.Connection, citus_ports: list[int], database_url: str
) -> None:
    """A worker that comes while another one claims takes what that leaves."""
    await db.execute(
        "INSERT INTO webhooks (instance_id, id, url, description, types, secret) VALUES (1, 1, '', '', '{}', '')"
    )
    await db.execute(
        "INSERT INTO deliveries (instance_id, webhook_id, event_id, type, body)"
        " SELECT 1, 1, gen_random_uuid(), 'x', '' FROM generate_series(1, 8)"
    )
    await distribute(citus_ports, database_url)
    database = Database(Settings(), database_url)
    await database.open()

    async def claim(db: Connection) -> set[uuid.UUID]:
        rows = await db.all("claim_deliveries", lease=60.0, instance_ids=[1], lanes=[1], shares=[3])
        return {row["event_id"] for row in rows}

    async with database.connection() as one, database.connection() as another:
        await one.value("check_writable")  # the first connection finds out that this is Citus
        async with one.raw.transaction():
            first = await claim(one)
            following = asyncio.create_task(claim(another))
            await asyncio.sleep(0.1)
        second = await following
        third = await claim(one)
    assert [len(first), len(second), len(third)] == [3, 3, 2]
    assert len(first | second | third) == 8
    await database.close()


@pytest.mark.damages
@pytest.mark.usefixtures("examples")
async def test_every_method_runs(
    operator: Client, client: Client, serve: Serve, citus_ports: list[int], database_url: str
) -> None:
    """With its examples; what writes, dry."""
    await distribute(citus_ports, database_url)
    caller = await serve()
    for name, method in METHODS.items():
        for example in method.examples:
            dry = {"dryRun": True} if method.writes else {}
            key = (operator if method.operator else client).key
            await caller.using(key).call(name, example.params | dry)


async def test_an_upgrade_builds_indexes_of_distributed_tables(citus_ports: list[int]) -> None:
    """With CREATE INDEX CONCURRENTLY, which Citus runs on each shard."""
    migrations = load_migrations()
    before = [one for one in migrations if one.version < 26]
    url = await cluster.new_database(citus_ports, before)
    await cluster.prepare(citus_ports, urlsplit(url).path[1:])
    coordinator = await asyncpg.connect(url)
    await distribution.distribute(coordinator, before)
    assert await migrate(coordinator, migrations) == [one.name for one in migrations[len(before) :]]
    for index in ("users_attributes", "groups_external_id", "users_find_others"):
        valid = f"SELECT indisvalid FROM pg_index WHERE indexrelid = '{index}'::regclass"
        assert await coordinator.fetchval(valid), index
        # %s: the name of a shard, users_102008, which ends with its number as its indexes do.
        on_shard = (
            "SELECT count(*) FROM pg_index AS i INNER JOIN pg_class AS c ON c.oid = i.indexrelid"
            f" WHERE i.indisvalid AND c.relname = '{index}' || substring('%s' FROM '_[0-9]+$')"
        )
        table = index.partition("_")[0]
        counts = await coordinator.fetch("SELECT result FROM run_command_on_shards($1, $2)", table, on_shard)
        assert [row["result"] for row in counts] == ["1"] * 4, index
    await coordinator.close()


# --- the server ---------------------------------------------------------------------------------------

JANE = {"email": "jane@example.com"}
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("createUser", JANE | {"displayName": "Jane", "password": "demo1234"}),
    ("getUserByEmail", JANE),
    ("createUsers", {"users": [{"email": "ann@example.com"}, {"email": "bob@example.com"}]}),
    ("login", JANE | {"password": "demo1234"}),
    ("listSessions", JANE),
    ("createGroup", {"name": "Sales"}),
    ("addToGroup", {"name": "Sales"} | JANE),
    ("listGroupMembers", {"name": "Sales"}),
    ("updateUserByEmail", JANE | {"displayName": "J."}),
    ("resetPasswordByEmail", JANE | {"password": "onemoretime"}),
    ("updateUserByEmail", JANE | {"isActive": False}),
    ("ensureUser", {"externalId": "shop-17", "email": "carl@example.com"}),
    ("createPlan", {"type": "prepaid", "name": "A year", "duration": 12}),
    ("assignPlan", {"userId": 2, "planId": 1}),
    ("createApiKey", {"name": "shop", "scopes": ["users:read"]}),
    ("listUsers", {}),
    ("searchUsers", {"searchText": "jane"}),
    ("listChanges", {}),
    ("listAuditEvents", {}),
    ("deleteUserByEmail", {"email": "ann@example.com"}),
]
TAKEN: list[tuple[str, dict[str, Any]]] = [
    ("createUser", JANE),
    ("createUsers", {"users": [JANE]}),
    ("renameUserByEmail", {"email": "bob@example.com", "newEmail": "jane@example.com"}),
]
"""What is refused because the e-mail is another user's."""


@pytest.fixture
async def receiver() -> AsyncIterator[TestServer]:
    """Takes every delivery."""

    async def take(request: web.Request) -> web.Response:
        return web.Response(status=204)

    app = web.Application()
    app.router.add_post("/", take)
    async with TestServer(app) as server:
        yield server


async def test_a_server_starts_and_serves(
    citus_ports: list[int], migrated_url: str, receiver: TestServer
) -> None:
    """With its queue and its webhooks; the first start makes the instance and its key."""
    await distribute(citus_ports, migrated_url)
    key = new_key()
    with running(migrated_url) as officerpc:
        served = await officerpc.serve(bootstrap_api_key=key, webhook_private_addresses=True)
        assert (await exchange(served.url, b"GET /readyz HTTP/1.0\r\n\r\n")).status == 200
        async with ClientSession(headers={"x-api-key": key}) as http:

            async def outcome_of(name: str, params: dict[str, Any]) -> tuple[int, Any]:
                body = {"method": name, "params": params}
                async with http.post(f"{served.url}/rpc", json=body) as response:
                    return response.status, await response.json()

            async def call(name: str, params: dict[str, Any]) -> Any:
                status, answer = await outcome_of(name, params)
                assert status == 200, (name, answer)
                return answer

            async def delivered() -> bool:
                rows = (await call("listDeliveries", {"id": 1}))["deliveries"]
                return len(rows) > 5 and all(row["state"] == "delivered" for row in rows)

            await call("createWebhook", {"url": str(receiver.make_url("/"))})
            for name, params in CALLS:
                await call(name, params)
            for name, params in TAKEN:
                status, answer = await outcome_of(name, params)
                assert status == 400 and 'unique constraint "users_email"' in str(answer), (name, answer)
            events = (await call("listChanges", {}))["events"]
            assert {event["type"] for event in events} >= {
                "user.created", "user.updated", "user.deleted", "session.created", "group.created",
            }  # fmt: skip
            await eventually(delivered)
        logged = [json.loads(line) for line in served.log.splitlines()]
        assert [line for line in logged if line["level"] != "info"] == []
        assert await served.stop() == 0
