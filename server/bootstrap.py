"""The first start: schema, demo instance with its administrator, and its API key."""

from dataclasses import dataclass

from server.auth import OPERATOR, TENANT_SCOPES, digest, new_key
from server.db import Database
from server.dispatch import Dispatcher
from server.events import by_itself
from server.migrations import load_migrations, migrate, migration_lock
from server.registry import Circumstances
from server.settings import Settings


@dataclass(frozen=True, slots=True)
class FirstStart:
    """What came of it."""

    migrations: list[str]
    # In clear, once: at its creation. None where there already is a key.
    api_key: str | None


async def bootstrap(settings: Settings, database: Database, dispatcher: Dispatcher) -> FirstStart:
    """Migrate, and make the demo instance and its key where there is none yet.

    Several servers may start at once: an advisory lock lets one of them do it.
    """
    connection = await database.direct()
    try:
        async with migration_lock(connection):
            migrations = await migrate(connection, load_migrations())
            async with database.connection() as db:
                await db.value("mend_event_clock")
                fresh = not await db.value("has_instances")
                chosen = settings.bootstrap_api_key and settings.bootstrap_api_key.get_secret_value()
                if chosen:
                    missing = not await db.value("has_key", digest=digest(chosen))
                else:
                    missing = not await db.value("has_keys")
            if fresh:
                admin = {"email": settings.bootstrap_admin_email}
                await dispatcher.call(
                    OPERATOR,
                    "createInstance",
                    {"name": settings.bootstrap_instance, "admin": admin},
                    Circumstances("bootstrap"),
                )
            if not missing:
                return FirstStart(migrations, None)
            key = chosen or new_key()
            instances = [settings.bootstrap_instance]
            async with database.transaction() as db:
                row = await db.one(
                    "create_key", name="bootstrap", digest=digest(key), prefix=key[:11],
                    scopes=list(TENANT_SCOPES), is_operator=False, instance_names=instances, networks=[],
                    lifetime=None, rate_per_minute=None, maker_id=None,
                )  # fmt: skip
                assert row is not None
                created = {"id": row["id"], "name": "bootstrap", "instances": instances}
                await db.run(
                    "insert_events", instance_id=0, types=["createApiKey"], user_ids=[None], befores=[None],
                    afters=[created], **by_itself("createApiKey", "bootstrap"),
                )  # fmt: skip
            return FirstStart(migrations, key)
    finally:
        await connection.close(timeout=5)
