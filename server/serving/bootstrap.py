"""The first start: schema, demo instance with its administrator, and its API key."""

from dataclasses import dataclass

from server.base.settings import Settings
from server.base.tokens import digest
from server.events.changes import Change
from server.events.emit import emit, system_actor
from server.postgres.db import Database
from server.postgres.migrations import load_migrations, migrate, migration_lock
from server.rpc.dispatch import Dispatcher
from server.tenants.call import RequestContext
from server.tenants.principals import OPERATOR, TENANT_SCOPES


@dataclass(frozen=True, slots=True)
class FirstStart:
    """What came of it."""

    migrations: list[str]
    # The chosen or offered key in clear, where it is stored. None where there was another one already.
    api_key: str | None


async def bootstrap(
    settings: Settings, database: Database, dispatcher: Dispatcher, offered_key: str
) -> FirstStart:
    """Migrate, and make the demo instance and its key where there is none yet.

    Several servers may start at once: an advisory lock lets one of them do it.

    Args:
        offered_key: a new key, stored where there is none and OFFICERPC_BOOTSTRAP_API_KEY is not set. A try
            whose COMMIT was not answered may have stored it: the next one is given the same key and finds it.
    """
    chosen = settings.bootstrap_api_key and settings.bootstrap_api_key.get_secret_value()
    key = chosen or offered_key
    connection = await database.direct()
    try:
        async with migration_lock(connection):
            migrations = await migrate(connection, load_migrations())
            async with database.connection() as db:
                await db.value("mend_event_clock")
                found = await db.one("find_first_start", digest=digest(key))
            assert found is not None
            if not found["has_instances"]:
                admin = {"email": settings.bootstrap_admin_email}
                await dispatcher.call(
                    OPERATOR,
                    "createInstance",
                    {"name": settings.bootstrap_instance, "admin": admin},
                    RequestContext("bootstrap"),
                )
            if found["has_key"] or (found["has_keys"] and not chosen):
                return FirstStart(migrations, key if found["has_key"] else None)
            instances = [settings.bootstrap_instance]
            async with database.transaction() as db:
                row = await db.one(
                    "create_key", name="bootstrap", digest=digest(key), prefix=key[:11],
                    scopes=list(TENANT_SCOPES), is_operator=False, instance_names=instances, networks=[],
                    lifetime=None, rate_per_minute=None, maker_id=None,
                )  # fmt: skip
                assert row is not None
                created = {"id": row["id"], "name": "bootstrap", "instances": instances}
                actor = system_actor("createApiKey", "bootstrap")
                await emit(db, 0, actor, [Change("", None, None, created)])
            return FirstStart(migrations, key)
    finally:
        await connection.close(timeout=5)
