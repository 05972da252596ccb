"""How a call is run: every wire hands its calls to Dispatcher."""

import asyncio
import random
import time
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
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
"""Calls about many users that run at once for one instance, and those that wait; the same for long lists. Two
keep the event loop and Postgres busy in turn; each of those that wait holds all its items in memory."""
_LONG_LIST = 100
"""Rows beyond which a list is long: decoding a thousand keeps the event loop busy for some milliseconds."""
_NO_TURN = nullcontext()


class Answered(NamedTuple):
    """What a call answers."""

    # Ready to be rendered as JSON.
    result: Any
    # Whether it is the stored answer to the same call, sent before under the same idempotency key.
    replayed: bool = False


class Dispatcher:
    """Checks, runs and observes calls."""

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
            check_results: hold every answer against its result model, as the tests do.
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
        """The result of answer alone."""
        return (await self.answer(caller, name, params, context)).result

    async def answer(
        self, caller: Principal, name: object, params: object, context: RequestContext
    ) -> Answered:
        """Run one method for a caller.

        With an idempotency key, a method that writes and keeps its answer does its work once: the same call
        sent again within 24 hours gets the answer of the first. Only committed work is kept: a refused call
        has changed nothing, and may be sent again, corrected or not, under its key. A dry run does everything
        and is rolled back.

        Args:
            caller: who calls.
            name: the method, as it came.
            params: its params as parsed from JSON, not yet validated; None for none.
            context: what else is known of the call.

        Returns:
            the result, and whether the work had been done before.

        Raises:
            IdempotencyConflict: the idempotency key was used for another request.
            StillRunning: the same call is being done at this moment.
            ServiceError: an error in the request, or one to try again.
            Exception: a bug of ours; the wire answers 500 and logs it.
        """
        started = time.perf_counter()
        method, call, code, cause = None, None, "internal", None
        share = CURRENT_SHARE.set(caller.share)
        try:
            method = self._find(name)
            if refusal := access.method_refusal(caller, method):
                raise refusal
            params, dry_run = without_dry_run(params)
            model = self._validated(method, params, dry_run)
            if refusal := access.member_refusal(caller, model, method.member_scopes):
                raise refusal
            call = self._begin(caller, method, context, dry_run=context.dry_run or bool(dry_run))
            with Deadline(self._deadlines):
                repeatable = IdempotentCall.of(method, caller, context.idempotency_key, params)
                kept = await repeatable.find(self._database) if repeatable else None
                if repeatable and kept:
                    if not caller.is_operator:  # whose call may have deleted the instance itself
                        call.instance = await call.find_instance(getattr(model, "instance", None))
                    answered = Answered(repeatable.opened(kept), replayed=True)
                else:
                    if isinstance(model, TenantParams):
                        call.instance = await call.find_instance(model.instance)
                        CURRENT_SHARE.set(call.instance.id)
                    async with self._turn(method, model):
                        answered = await self._run(method, call, model, repeatable)
            code = "ok"
            return answered
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

    def _validated(self, method: Method, params: object, dry_run: object) -> Any:
        bad = [] if isinstance(dry_run, bool) else [FieldError(DRY_RUN, "must be true or false")]
        return validated(method.params, params, bad, settings=self._settings)

    def _begin(self, caller: Principal, method: Method, context: RequestContext, *, dry_run: bool) -> Call:
        return Call(
            caller,
            self._settings,
            self._database,
            self._dry_hasher if dry_run else self._hasher,
            self.pictures,
            self.keys,
            context._replace(dry_run=dry_run) if dry_run else context,
            self.methods,
            method.name,
        )

    def _turn(self, method: Method, params: BaseModel) -> AbstractAsyncContextManager[object]:
        """Waits until the call may run, where few of its kind run at once for one instance."""
        if method.many:
            return self._many.turn(CURRENT_SHARE.get())
        if "limit" in method.params.model_fields and params.limit > _LONG_LIST:  # type: ignore[attr-defined]
            return self._long_lists.turn(CURRENT_SHARE.get())
        return _NO_TURN

    async def _run(
        self, method: Method, call: Call, params: BaseModel, repeatable: IdempotentCall | None
    ) -> Answered:
        arguments: tuple[Any, ...] = (call, params)
        if method.prepare is not None:
            arguments = (call, params, await method.prepare(call, params))
        if method.writes:
            answered = await self._write(method, call, arguments, repeatable)
        else:
            answered = Answered(await self._read(method, call, arguments))
        if not call.context.dry_run:
            for then in call.after_commit:
                then()
        if self._check_results:
            TypeAdapter(method.result).validate_python(answered.result)
        return answered

    async def _read(self, method: Method, call: Call, arguments: tuple[Any, ...]) -> Any:
        for _ in range(TRIES - 1):
            with suppress(ConnectionLost):  # an idle connection died; reads are safe to retry
                async with self._database.connection() as call.db:
                    return await method.handler(*arguments)
        async with self._database.connection() as call.db:
            return await method.handler(*arguments)

    async def _write(
        self, method: Method, call: Call, arguments: tuple[Any, ...], repeatable: IdempotentCall | None
    ) -> Answered:
        dry_run = call.context.dry_run
        if dry_run:
            repeatable = None
        call.single = method.single is not None and method.single(arguments[1])
        for attempt in range(1, _ATTEMPTS + 1):
            call.after_commit.clear()
            call.changes.clear()
            try:
                if call.single and not dry_run and repeatable is None:
                    async with self._database.statement() as call.db:
                        return Answered(await method.handler(*arguments))
                async with self._database.transaction(dry_run=dry_run) as call.db:
                    if repeatable and (kept := await repeatable.claim(call.db)):
                        return Answered(repeatable.opened(kept), replayed=True)
                    result = await method.handler(*arguments)
                    if not call.single:
                        await _emit(call, arguments[1])
                    if repeatable:
                        result = await repeatable.keep(call.db, result)
                    return Answered(result)
            except OutcomeUnknown as error:
                if repeatable is None:
                    raise
                text = "the connection was lost while committing, send it again under its idempotency key"
                raise OutcomeUnknown(text, retry_after=1) from error
            except Conflict as error:
                explained: ServiceError | None = None
                if call.explain is not None:
                    with suppress(Unavailable):  # then without its reason
                        explained = await call.explain(error)
                raise explained or error from error.__cause__
            except (Contention, NotBegun):
                # Serialization failures, deadlocks, idle connections that died: nothing was done. The whole
                # transaction runs again, after a pause with jitter.
                if attempt == _ATTEMPTS:
                    raise
                await asyncio.sleep(random.uniform(0, 0.02 * 2**attempt))  # noqa: S311
        raise AssertionError("unreachable")


async def _emit(call: Call, params: BaseModel) -> None:
    """Write down what a call changed; what it was asked for, where it told no changes."""
    changes = call.changes
    if not changes:
        given = params.model_dump(mode="json", exclude_unset=True, exclude={"instance"}, context=IN_EVENTS)
        changes = [Change("", call.subject, None, given)]
    instance = getattr(call, "instance", None)
    await emit(call.db, instance.id if instance else 0, call.actor(), changes)
