"""How a command reaches the server's core: settings, the database, calls with an operator's rights."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Annotated, Any, TypeVar

import typer
from pydantic import ValidationError

from server import logs
from server.cli.terminal import err, fail
from server.settings import Settings

T = TypeVar("T")

InstanceName = Annotated[str, typer.Option("--instance", "-i", help="The instance by name.")]


def read_settings() -> Settings:
    """The settings, or an end that names every bad one."""
    try:
        return Settings()
    except ValidationError as error:
        for detail in error.errors(include_url=False, include_input=False):
            err.print(f"OFFICERPC_{'.'.join(map(str, detail['loc'])).upper()}: {detail['msg']}", markup=False)
        fail("the settings are not usable")


@contextlib.contextmanager
def database_url(settings: Settings) -> Iterator[str]:
    """Where the database is: the configured one, or the embedded one, run meanwhile."""
    if settings.database_url is not None:
        yield settings.database_url.get_secret_value()
        return
    from server.embedded import embedded_postgres_url

    with embedded_postgres_url(settings.data_dir) as url:
        yield url


class Session:
    """What a command needs: the database, and calls with an operator's rights."""

    def __init__(self, settings: Settings, url: str) -> None:
        from server.app import build

        self.settings = settings
        # The params of the last call: what an error is about.
        self.asked: dict[str, Any] = {}
        self.database, self.keys, self.hasher, self.dispatcher = build(settings, url)

    async def call(self, method: str, params: dict[str, Any]) -> Any:
        """A registered method, called by the operator."""
        from server.auth import OPERATOR
        from server.registry import Circumstances

        self.asked = params
        return await self.dispatcher.call(OPERATOR, method, params, Circumstances("command-line"))


def run(work: Callable[[Session], Coroutine[Any, Any, T]]) -> T:
    """Run a command against the database. Whatever the caller can mend ends with status 1 and one line."""
    from server.errors import ServiceError

    settings = read_settings()
    logs.configure("error")

    async def session(url: str) -> T:
        session = Session(settings, url)
        await session.database.open()
        try:
            return await work(session)
        except ServiceError as error:
            fail(_worded(error, session.asked))
        finally:
            session.hasher.close()
            await session.database.close()

    with database_url(settings) as url:
        try:
            return asyncio.run(session(url))
        except ServiceError as error:
            fail(error.message)


def _worded(error: Any, asked: dict[str, Any]) -> str:
    """What the caller can mend, with the name that was not found."""
    from server.errors import Forbidden, InstanceSuspended, NotFound

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


async def pages(session: Session, method: str, member: str, params: dict[str, Any]) -> AsyncIterator[Any]:
    after = None
    while True:
        page = await session.call(method, params | {"after": after, "limit": 1000})
        for item in page[member]:
            yield item
        after = page["next"]
        if after is None:
            return
