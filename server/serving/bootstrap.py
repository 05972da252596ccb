"""The first start: schema, demo instance with its administrator, and its API key."""

from server.base.settings import Settings
from server.base.tokens import digest
from server.events.changes import Change
from server.events.emit import emit, system_actor
from server.postgres.db import Database
from server.postgres.migrations import load_migrations, migrate, migration_lock
from server.rpc.dispatch import Dispatcher
from server.tenants.call import RequestContext
from server.tenants.principals import OPERATOR, TENANT_SCOPES


async def bootstrap(
    settings: Settings, database: Database, dispatcher: Dispatcher, offered_key: str
) -> str | None:
    """Migrate, and create the demo instance and its API key if there are none.

    If several servers start at once, an advisory lock lets them do it one after the other.

    Args:
        offered_key: a new key, stored if there is none and OFFICERPC_BOOTSTRAP_API_KEY is not set. Retries
            pass the same key: a COMMIT without an answer may have stored it.

    Returns:
        the first API key in clear; None if another key already existed.
    """
    chosen = settings.bootstrap_api_key and settings.bootstrap_api_key.get_secret_value()
    key = chosen or offered_key
    connection = await database.direct()
    try:
        await migrate(connection, load_migrations())
        async with migration_lock(connection):
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
                return key if found["has_key"] else None
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
            return key
    finally:
        await connection.close(timeout=5)
