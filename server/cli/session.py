"""How a command reaches the server's core: settings, the database, calls with an operator's rights."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, NamedTuple, TypeVar

from pydantic import ValidationError

from server.base import logs
from server.base.printable import printable
from server.base.settings import Settings, unknown_variables
from server.cli.terminal import err, fail

T = TypeVar("T")


def read_settings(*, warn: bool = True) -> Settings:
    """The settings, or an end that names every bad one.

    Args:
        warn: name unknown variables on standard error.
    """
    try:
        settings = Settings()
    except ValidationError as error:
        for detail in error.errors(include_url=False, include_input=False):
            err.print(f"OFFICERPC_{'.'.join(map(str, detail['loc'])).upper()}: {detail['msg']}")
        fail("the settings are not usable")
    if settings.bootstrap_api_key is not None:
        from server.tenants.keys import looks_like_key

        if not looks_like_key(settings.bootstrap_api_key.get_secret_value()):
            fail("OFFICERPC_BOOTSTRAP_API_KEY begins with orpc_ but its checksum is wrong: it is mistyped")
    if warn:
        for name, meant in unknown_variables().items():
            err.print(f"{printable(name)} is not a setting{f': did you mean {meant}?' if meant else ''}")
    return settings


class Located(NamedTuple):
    """A database."""

    url: str
    # To be called every second by whoever runs for long: it keeps the embedded server up.
    look_after: Callable[[], None] = lambda: None


@contextlib.contextmanager
def located_database(settings: Settings) -> Iterator[Located]:
    """Where the database is: the configured one, or the embedded one, run meanwhile."""
    if settings.database_url is not None:
        yield Located(settings.database_url.get_secret_value())
        return
    from server.postgres.embedded import embedded_server

    with embedded_server(settings.data_dir) as server:
        yield Located(server.url, server.look_after)


class Session:
    """What a command needs: the database, and calls with an operator's rights."""

    def __init__(self, settings: Settings, url: str) -> None:
        from server.serving.app import build

        self.settings = settings
        # The params of the last call: what an error is about.
        self.asked: dict[str, Any] = {}
        self.database, self.keys, self.hasher, self.dispatcher = build(settings, url)

    async def call(self, method: str, params: dict[str, Any]) -> Any:
        """A registered method, called by the operator."""
        from server.tenants.call import RequestContext
        from server.tenants.principals import OPERATOR

        self.asked = params
        return await self.dispatcher.call(OPERATOR, method, params, RequestContext("command-line"))


def run(work: Callable[[Session], Coroutine[Any, Any, T]]) -> T:
    """Run a command against the database. Whatever the caller can mend ends with status 1 and one line."""
    from server.base.errors import ServiceError
    from server.postgres.db import advice

    settings = read_settings()
    logs.configure("error")

    async def session(url: str) -> T:
        session = Session(settings, url)
        await session.database.open()
        try:
            return await work(session)
        except ServiceError as error:
            fail(advice(error) or _worded(error, session.asked))
        finally:
            session.hasher.close()
            await session.database.close()

    with located_database(settings) as database:
        try:
            return asyncio.run(session(database.url))
        except ServiceError as error:
            fail(advice(error) or error.message)


def _worded(error: Any, asked: dict[str, Any]) -> str:
    """What the caller can mend, with the name that was not found."""
    from server.base.errors import Forbidden, InstanceSuspended, NotFound

    if isinstance(error, InstanceSuspended):
        return f"the instance {asked.get('instance')} is suspended"
    if isinstance(error, Forbidden):  # an operator may do everything else
        return f"there is no instance {asked.get('instance')}"
    if isinstance(error, NotFound) and (name := asked.get("email") or asked.get("id")):
        return f"{name}: {error.message}"
    for field, _ in error.fields:
        if field.startswith("instances."):
            return f"there is no instance {asked['instances'][int(field.removeprefix('instances.'))]}"
    return str(error.message)


async def pages(
    session: Session, method: str, member: str, params: dict[str, Any], *, limit: int | None = None
) -> AsyncIterator[Any]:
    """The items of a method that answers pages.

    Args:
        member: of the page, which holds its items.
        limit: items at most; None for all.
    """
    left, after = limit, None
    while left is None or left > 0:
        page = await session.call(method, params | {"after": after, "limit": min(left or 1000, 1000)})
        for item in page[member]:
            yield item
        after = page["next"]
        if after is None:
            return
        if left is not None:
            left -= len(page[member])
