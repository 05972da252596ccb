"""The one way in: every front hands its calls to Dispatcher.call."""

import asyncio
import random
import time
from collections.abc import Mapping
from typing import Any

import structlog
from pydantic import BaseModel, TypeAdapter

from server.auth import Caller, KeyRing
from server.db import Database
from server.deadlines import Deadline, Deadlines
from server.errors import (
    ConnectionLost,
    Contention,
    Forbidden,
    NotBegun,
    ServiceError,
    Unavailable,
    UnknownMethod,
)
from server.events import Change, redacted
from server.metrics import CallFact, Metrics
from server.passwords import PasswordHasher
from server.pictures import Pictures
from server.registry import Call, Circumstances, Method, TenantParams, validated
from server.settings import Settings

log = structlog.get_logger()

_ATTEMPTS = 4


class Dispatcher:
    """Checks, runs and observes calls."""

    def __init__(
        self,
        methods: Mapping[str, Method],
        settings: Settings,
        database: Database,
        keys: KeyRing,
        hasher: PasswordHasher,
        pictures: Pictures,
        metrics: Metrics,
        *,
        check_results: bool = False,
    ) -> None:
        """
        Args:
            methods: the registry.
            check_results: hold every answer against its result model, as the tests do.
        """
        self.methods = methods
        self.keys = keys
        self.pictures = pictures
        self.metrics = metrics
        self._settings = settings
        self._database = database
        self._hasher = hasher
        self._check_results = check_results
        self._deadlines = Deadlines(settings.call_timeout)

    async def call(self, caller: Caller, name: object, params: object, circumstances: Circumstances) -> Any:
        """Run one method for a caller.

        Args:
            caller: who calls.
            name: the method, as it came.
            params: its params as parsed from JSON, not yet validated; None for none.
            circumstances: what else is known of it, such as what the caller can quote.

        Returns:
            the result, ready to be rendered as JSON.

        Raises:
            ServiceError: whatever the caller can mend or try again.
            Exception: a bug of ours; the front answers 500 and logs it.
        """
        started = time.perf_counter()
        code, known, call, cause = "internal", "unknown", None, None
        try:
            method = self.methods.get(name) if isinstance(name, str) else None
            if method is None:
                raise UnknownMethod(
                    f"unknown method {name[:64]}" if isinstance(name, str) else "method: must be a string"
                )
            known = method.name
            if method.scope not in caller.scopes or (method.operator and not caller.is_operator):
                raise Forbidden
            model = validated(method.params, params)
            for member, scope in method.member_scopes.items():
                given = getattr(model, member)
                if given != type(model).model_fields[member].default and scope not in caller.scopes:
                    raise Forbidden
            call = Call(
                caller,
                self._settings,
                self._database,
                self._hasher,
                self.pictures,
                self.keys,
                circumstances,
                self.methods,
            )
            with Deadline(self._deadlines):
                if isinstance(model, TenantParams):
                    call.instance = await self.keys.instance(caller, model.instance)
                result = await self._run(method, call, model)
            code = "ok"
            return result
        except TimeoutError as error:
            code, cause = "unavailable", "call_timeout"
            raise Unavailable("the call took too long, try again", retry_after=1) from error
        except ServiceError as error:
            code, cause = error.code, error.cause()
            raise
        finally:
            instance = getattr(call, "instance", None)
            self.metrics.call(
                CallFact(
                    known,
                    code,
                    time.perf_counter() - started,
                    circumstances.request_id,
                    caller.key_id,
                    instance.name if instance else None,
                    cause,
                )
            )

    async def _run(self, method: Method, call: Call, params: BaseModel) -> Any:
        arguments: tuple[Any, ...] = (call, params)
        if method.prepare is not None:
            arguments = (call, params, await method.prepare(call, params))
        result = await (self._write if method.writes else self._read)(method, call, arguments)
        for then in call.after_commit:
            then()
        if self._check_results:
            TypeAdapter(method.result).validate_python(result)
        return result

    async def _read(self, method: Method, call: Call, arguments: tuple[Any, ...]) -> Any:
        try:
            async with self._database.connection() as call.db:
                return await method.handler(*arguments)
        except ConnectionLost:  # perhaps while it idled, which shows only now: reading again harms nobody
            async with self._database.connection() as call.db:
                return await method.handler(*arguments)

    async def _write(self, method: Method, call: Call, arguments: tuple[Any, ...]) -> Any:
        for attempt in range(1, _ATTEMPTS + 1):
            call.after_commit.clear()
            call.changes.clear()
            try:
                async with self._database.transaction() as call.db:
                    result = await method.handler(*arguments)
                    await self._write_down(method, call, arguments[1])
                    return result
            except (Contention, NotBegun):
                # Serialization failures, deadlocks, a connection that was lost while it idled: the whole
                # transaction again, after a jittered pause. Nothing of it has been done.
                if attempt == _ATTEMPTS:
                    raise
                await asyncio.sleep(random.uniform(0, 0.02 * 2**attempt))  # noqa: S311
        raise AssertionError("unreachable")

    async def _write_down(self, method: Method, call: Call, params: BaseModel) -> None:
        changes = call.changes
        if not changes:
            given = params.model_dump(mode="json", exclude_unset=True, exclude={"instance"})
            changes = [Change("", call.subject, None, redacted(given))]
        instance = getattr(call, "instance", None)
        await call.db.run(
            "insert_events",
            instance_id=instance.id if instance else 0,
            types=[change.type or method.name for change in changes],
            user_ids=[change.user_id for change in changes],
            befores=[change.before for change in changes],
            afters=[change.after for change in changes],
            method=method.name,
            key_id=call.caller.key_id,
            key_name=call.caller.key_name,
            request_id=call.circumstances.request_id,
            address=call.circumstances.address,
            origin=call.circumstances.origin,
        )
