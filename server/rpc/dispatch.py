"""Running calls of methods, for all wires."""

import asyncio
import random
import time
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from functools import cache
from typing import Any, NamedTuple

from pydantic import BaseModel, TypeAdapter

from server.base.errors import (
    Conflict,
    ConnectionLost,
    Contention,
    FieldError,
    NotBegun,
    OutcomeUnknown,
    ServiceError,
    Unavailable,
    UnknownMethod,
)
from server.base.metrics import CallFact, Metrics
from server.base.models import IN_EVENTS, TenantParams, validated
from server.base.passwords import DryHasher, PasswordHasher
from server.base.settings import Settings
from server.base.shares import CURRENT_SHARE, Shares
from server.events.changes import Change
from server.events.emit import emit
from server.methods.registry import DRY_RUN, Method, without_dry_run
from server.outside.pictures import Pictures
from server.postgres.db import TRIES, Database
from server.postgres.deadlines import Deadline, Deadlines
from server.rpc.idempotency import IdempotentCall
from server.tenants import access
from server.tenants.call import Call, RequestContext
from server.tenants.keys import KeyCache
from server.tenants.principals import Principal

_ATTEMPTS = 4
_MANY_AT_ONCE, _MANY_WAITING = 2, 50
"""Bulk calls of one instance that run at once, and that wait; the same for long lists. Two keep the event
loop and Postgres busy in turn; each waiting call keeps all its items in memory."""
_LONG_LIST = 100
"""Lists of more rows are long: decoding a thousand rows blocks the event loop for some milliseconds."""


class Answer(NamedTuple):
    """The answer of a call."""

    # Can be rendered as JSON.
    result: Any
    # Whether it is the stored answer of the same call, sent before with the same idempotency key.
    replayed: bool = False


@cache
def _checker(result: Any) -> TypeAdapter[Any]:
    """What checks that a result is of the declared type."""
    return TypeAdapter(result)


class Dispatcher:
    """Checks, runs and reports calls."""

    def __init__(
        self,
        methods: Mapping[str, Method],
        settings: Settings,
        database: Database,
        keys: KeyCache,
        hasher: PasswordHasher,
        pictures: Pictures,
        metrics: Metrics,
        *,
        check_results: bool = False,
    ) -> None:
        """
        Args:
            methods: the registry.
            check_results: validate every result with its model, as the tests do.
        """
        self.methods = methods
        self.keys = keys
        self.pictures = pictures
        self.metrics = metrics
        self._settings = settings
        self._database = database
        self._hasher = hasher
        self._dry_hasher = DryHasher(hasher)
        self._check_results = check_results
        self._deadlines = Deadlines(settings.call_timeout)
        self._many = Shares(
            of_one=_MANY_AT_ONCE,
            waiting=_MANY_WAITING,
            refusal="too many calls about many users are waiting, try again",
        )
        self._long_lists = Shares(
            of_one=_MANY_AT_ONCE,
            waiting=_MANY_WAITING,
            refusal="too many calls for long lists are waiting, try again",
        )

    async def call(self, caller: Principal, name: object, params: object, context: RequestContext) -> Any:
        """The result of `answer`."""
        return (await self.answer(caller, name, params, context)).result

    async def answer(
        self, caller: Principal, name: object, params: object, context: RequestContext
    ) -> Answer:
        """Run one method for a caller.

        With an idempotency key, a method that writes and keeps its answer runs once: the same call sent again
        within 24 hours gets the first answer. Only answers of committed calls are kept: a refused call may be
        sent again with its key, changed or not. A dry run does everything and is rolled back.

        Args:
            name: of the method, as the client sent it.
            params: parsed JSON, not yet validated; None: no params.

        Raises:
            IdempotencyConflict: the idempotency key was used for another request.
            StillRunning: the same call is running.
            ServiceError: any other error for the caller.
            Exception: a bug; the wire answers 500 and logs it.
        """
        started = time.perf_counter()
        method, call, code, cause = None, None, "internal", None
        share = CURRENT_SHARE.set(caller.share)
        try:
            method = self._find(name)
            if refusal := access.method_refusal(caller, method):
                raise refusal
            params, dry_run = without_dry_run(params)
            bad = [] if isinstance(dry_run, bool) else [FieldError(DRY_RUN, "must be true or false")]
            model = validated(method.params, params, bad, settings=self._settings)
            if refusal := access.member_refusal(caller, model, method.member_scopes):
                raise refusal
            context = context._replace(dry_run=context.dry_run or bool(dry_run))
            hasher = self._dry_hasher if context.dry_run else self._hasher
            call = Call(
                caller,
                self._settings,
                self._database,
                hasher,
                self.pictures,
                self.keys,
                context,
                self.methods,
                method.name,
            )
            with Deadline(self._deadlines):
                idempotent = IdempotentCall.of(method, caller, context.idempotency_key, params)
                kept = await idempotent.find(self._database) if idempotent else None
                if idempotent and kept:
                    if not caller.is_operator:  # an operator's call may have deleted the instance
                        call.instance = await call.find_instance(getattr(model, "instance", None))
                    answer = Answer(idempotent.decrypt(kept), replayed=True)
                else:
                    if isinstance(model, TenantParams):
                        call.instance = await call.find_instance(model.instance)
                        CURRENT_SHARE.set(call.instance.id)
                    async with self._turn(method, model):
                        answer = await self._run(method, call, model, idempotent)
            code = "ok"
            return answer
        except TimeoutError as error:
            code, cause = "unavailable", "call_timeout"
            raise Unavailable("the call took too long, try again", retry_after=1) from error
        except ServiceError as error:
            code, cause = error.code, error.cause()
            if self._check_results and method:
                assert code in method.errors, f"{method.name} does not declare {code}"
            raise
        finally:
            CURRENT_SHARE.reset(share)
            instance = getattr(call, "instance", None)
            self.metrics.call(
                CallFact(
                    method.name if method else "unknown",
                    code,
                    time.perf_counter() - started,
                    context.request_id,
                    caller.id,
                    instance.name if instance else None,
                    cause,
                )
            )

    def _find(self, name: object) -> Method:
        if not isinstance(name, str):
            raise UnknownMethod("method: must be a string")
        method = self.methods.get(name)
        if method is None:
            raise UnknownMethod(f"unknown method {name[:64]}")
        return method

    def _turn(self, method: Method, params: BaseModel) -> AbstractAsyncContextManager[object]:
        """Wait until the call may run, if only few such calls of one instance run at once."""
        if method.many:
            return self._many.turn(CURRENT_SHARE.get())
        if "limit" in method.params.model_fields and params.limit > _LONG_LIST:  # type: ignore[attr-defined]
            return self._long_lists.turn(CURRENT_SHARE.get())
        return nullcontext()

    async def _run(
        self, method: Method, call: Call, params: BaseModel, idempotent: IdempotentCall | None
    ) -> Answer:
        arguments: tuple[Any, ...] = (call, params)
        if method.prepare is not None:
            arguments = (call, params, await method.prepare(call, params))
        if method.writes:
            answer = await self._write(method, call, arguments, idempotent)
        else:
            answer = Answer(await self._read(method, call, arguments))
        if not call.context.dry_run:
            for function in call.after_commit:
                function()
        if self._check_results:
            _checker(method.result).validate_python(answer.result)
        return answer

    async def _read(self, method: Method, call: Call, arguments: tuple[Any, ...]) -> Any:
        for _ in range(TRIES - 1):
            with suppress(ConnectionLost):  # an idle connection died; reads are safe to retry
                async with self._database.connection() as call.db:
                    return await method.handler(*arguments)
        async with self._database.connection() as call.db:
            return await method.handler(*arguments)

    async def _write(
        self, method: Method, call: Call, arguments: tuple[Any, ...], idempotent: IdempotentCall | None
    ) -> Answer:
        dry_run = call.context.dry_run
        if dry_run:
            idempotent = None
        call.single = method.single is not None and method.single(arguments[1])
        for attempt in range(1, _ATTEMPTS + 1):
            call.after_commit.clear()
            call.changes.clear()
            try:
                if call.single and not dry_run and idempotent is None:
                    async with self._database.statement() as call.db:
                        return Answer(await method.handler(*arguments))
                async with self._database.transaction(dry_run=dry_run) as call.db:
                    if idempotent and (kept := await idempotent.claim(call.db)):
                        return Answer(idempotent.decrypt(kept), replayed=True)
                    result = await method.handler(*arguments)
                    if not call.single:
                        await _emit(call, arguments[1])
                    if idempotent:
                        result = await idempotent.keep(call.db, result)
                    return Answer(result)
            except OutcomeUnknown as error:
                if idempotent is None:
                    raise
                text = "the connection was lost while committing, send it again under its idempotency key"
                raise OutcomeUnknown(text, retry_after=1) from error
            except Conflict as error:
                explained: ServiceError | None = None
                if call.explain is not None:
                    with suppress(Unavailable):  # then the conflict itself is the answer
                        explained = await call.explain(error)
                raise explained or error from error.__cause__
            except (Contention, NotBegun):
                # Serialization failures, deadlocks, idle connections that died: nothing was committed. The
                # whole transaction runs again, after a pause with jitter.
                if attempt == _ATTEMPTS:
                    raise
                await asyncio.sleep(random.uniform(0, 0.02 * 2**attempt))  # noqa: S311
        raise AssertionError("unreachable")


async def _emit(call: Call, params: BaseModel) -> None:
    """Store the events of a call; if it has none, one with its params."""
    changes = call.changes
    if not changes:
        given = params.model_dump(mode="json", exclude_unset=True, exclude={"instance"}, context=IN_EVENTS)
        changes = [Change("", call.subject, None, given)]
    instance = getattr(call, "instance", None)
    await emit(call.db, instance.id if instance else 0, call.actor(), changes)
