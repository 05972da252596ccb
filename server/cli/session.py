"""How a command reaches the server's core: settings, the database, calls as the operator."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, NamedTuple, Self, TypeVar

from pydantic import ValidationError

from server.base import logs
from server.base.printable import printable
from server.base.settings import Settings, unknown_variables
from server.cli.terminal import err, fail

T = TypeVar("T")


def read_settings(*, warn: bool = True) -> Settings:
    """The settings. If any is invalid, print each invalid one and exit.

    Args:
        warn: print a warning for each unknown OFFICERPC_ variable.
    """
    try:
        settings = Settings()
    except ValidationError as error:
        for detail in error.errors(include_url=False, include_input=False):
            err.print(f"OFFICERPC_{'.'.join(map(str, detail['loc'])).upper()}: {detail['msg']}")
        fail("the settings are invalid")
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
    # Restarts the embedded server if it died. Long-running commands call it every second.
    look_after: Callable[[], None] = lambda: None


@contextlib.contextmanager
def located_database(settings: Settings) -> Iterator[Located]:
    """The configured database, or the embedded one, which runs until the block ends."""
    if settings.database_url is not None:
        yield Located(settings.database_url.get_secret_value())
        return
    from server.postgres.embedded import embedded_server

    with embedded_server(settings.data_dir) as server:
        yield Located(server.url, server.look_after)


class Session:
    """What a command needs: an open database, and calls as the operator."""

    def __init__(self, settings: Settings, url: str) -> None:
        from server.serving.app import build

        self.settings = settings
        # Params of the last call, for error messages.
        self.last_params: dict[str, Any] = {}
        self.database, self.keys, self.hasher, self.dispatcher = build(settings, url)

    async def __aenter__(self) -> Self:
        await self.database.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.hasher.close()
        self.dispatcher.pictures.close()
        await self.database.close()

    async def call(self, method: str, params: dict[str, Any]) -> Any:
        """Call a registered method as the operator."""
        from server.tenants.call import RequestContext
        from server.tenants.principals import OPERATOR

        self.last_params = params
        return await self.dispatcher.call(OPERATOR, method, params, RequestContext("command-line"))


def run(work: Callable[[Session], Coroutine[Any, Any, T]]) -> T:
    """Run a command against the database. A ServiceError ends it with status 1 and a one-line message."""
    from server.base.errors import ServiceError
    from server.postgres.db import advice

    settings = read_settings()
    logs.configure("error")

    async def session(url: str) -> T:
        async with Session(settings, url) as session:
            try:
                return await work(session)
            except ServiceError as error:
                fail(advice(error) or _message(error, session.last_params))

    with located_database(settings) as database:
        try:
            return asyncio.run(session(database.url))
        except ServiceError as error:
            fail(advice(error) or error.message)


def call(method: str, params: dict[str, Any]) -> Any:
    """Run one call against the database."""
    return run(lambda session: session.call(method, params))


def call_pages(method: str, member: str, params: dict[str, Any], limit: int | None = None) -> list[Any]:
    """Run a method that answers pages; see pages."""

    async def work(session: Session) -> list[Any]:
        return [item async for item in pages(session, method, member, params, limit)]

    return run(work)


def _message(error: Any, params: dict[str, Any]) -> str:
    """The message of a ServiceError, with the name of the object that was not found."""
    from server.base.errors import Forbidden, InstanceSuspended, NotFound

    if isinstance(error, InstanceSuspended):
        return f"the instance {params.get('instance')} is suspended"
    if isinstance(error, Forbidden):  # the operator may do everything else
        return f"there is no instance {params.get('instance')}"
    if isinstance(error, NotFound) and (name := params.get("email") or params.get("id")):
        return f"{name}: {error.message}"
    for field, _ in error.fields:
        if field.startswith("instances."):
            return f"there is no instance {params['instances'][int(field.removeprefix('instances.'))]}"
    return str(error.message)


async def pages(
    session: Session, method: str, member: str, params: dict[str, Any], limit: int | None = None
) -> AsyncIterator[Any]:
    """The items of all pages of a method whose answer has `next`.

    Args:
        member: the member of the answer that has the items.
        limit: maximum number of items; None for all.
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


async def all_by_id(session: Session, method: str, params: dict[str, Any]) -> list[Any]:
    """All items of a method that answers lists in the order of their ids."""
    found: list[Any] = []
    while page := await session.call(
        method, params | {"after": found[-1]["id"] if found else 0, "limit": 1000}
    ):
        found += page
    return found
