"""The one way in: every wire hands its calls to Dispatcher.call."""

import asyncio
import contextlib
import random
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson
import structlog
from pydantic import BaseModel, TypeAdapter

from server.base.errors import (
    Conflict,
    ConnectionLost,
    Contention,
    FieldError,
    MemberForbidden,
    MissingScope,
    NotBegun,
    OperatorsOnly,
    OutcomeUnknown,
    ServiceError,
    StillRunning,
    Unavailable,
    UnknownMethod,
)
from server.base.metrics import CallFact, Metrics
from server.base.models import IN_EVENTS, TenantParams, validated
from server.base.passwords import DryHasher, PasswordHasher
from server.base.settings import Settings
from server.base.shares import CURRENT_SHARE, Shares
from server.events.emit import Change
from server.methods.registry import DRY_RUN, Method, without_dry_run
from server.outside.pictures import Pictures
from server.postgres.db import TRIES, Database
from server.postgres.deadlines import Deadline, Deadlines
from server.rpc.idempotency import IdempotentCall
from server.tenants.call import Call, RequestContext
from server.tenants.keys import Caller, KeyCache

log = structlog.get_logger()

_ATTEMPTS = 4
_MANY_AT_ONCE, _MANY_WAITING = 2, 50
"""Calls about many users that run at once for one instance, and those that wait; the same for long lists. Two
keep the event loop and Postgres busy in turn; each of those that wait holds all its items in memory."""
_LONG_LIST = 100
"""Rows beyond which a list is long: decoding a thousand keeps the event loop busy for some milliseconds."""


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

    async def call(self, caller: Caller, name: object, params: object, context: RequestContext) -> Any:
        """The result of answer alone."""
        return (await self.answer(caller, name, params, context)).result

    async def answer(self, caller: Caller, name: object, params: object, context: RequestContext) -> Answered:
        """Run one method for a caller.

        With an idempotency key, a method that writes and keeps its answer does its work once: whoever sends
        the same call again within 24 hours gets the answer of the first. Only work that was committed is
        kept: a call that was refused has changed nothing, and may be sent again, mended or not, under its
        key. A dry run goes the whole way and is rolled back.

        Args:
            caller: who calls.
            name: the method, as it came.
            params: its params as parsed from JSON, not yet validated; None for none.
            context: what else is known of it, such as what the caller can quote.

        Returns:
            the result, and whether the work had been done before.

        Raises:
            IdempotencyConflict: the idempotency key was used for another request.
            StillRunning: the same call is being done at this moment.
            ServiceError: whatever the caller can mend or try again.
            Exception: a bug of ours; the wire answers 500 and logs it.
        """
        started = time.perf_counter()
        code, known, call, cause = "internal", "unknown", None, None
        share = CURRENT_SHARE.set(caller.share)
        try:
            method = self.methods.get(name) if isinstance(name, str) else None
            if method is None:
                raise UnknownMethod(
                    f"unknown method {name[:64]}" if isinstance(name, str) else "method: must be a string"
                )
            known = method.name
            if method.scope not in caller.scopes:
                raise MissingScope(scope=method.scope)
            if method.operator and not caller.is_operator:
                raise OperatorsOnly
            bad = []
            params, dry_run = without_dry_run(params)
            if not isinstance(dry_run, bool):
                bad.append(FieldError(DRY_RUN, "must be true or false"))
            elif dry_run:
                context = context._replace(dry_run=True)
            model = validated(method.params, params, bad, settings=self._settings)
            for member, scope in method.member_scopes.items():
                given = getattr(model, member)
                if given != type(model).model_fields[member].default and scope not in caller.scopes:
                    raise MemberForbidden(scope=scope)
            call = Call(
                caller,
                self._settings,
                self._database,
                self._dry_hasher if context.dry_run else self._hasher,
                self.pictures,
                self.keys,
                context,
                self.methods,
                known,
            )
            with Deadline(self._deadlines):
                repeatable = _repeatable(method, call, params)
                answered = await self._replay(call, model, repeatable) if repeatable else None
                if answered is None:
                    if isinstance(model, TenantParams):
                        call.instance = await call.find_instance(model.instance)
                        CURRENT_SHARE.set(call.instance.id)
                    answered = await self._run(method, call, model, repeatable)
            code = "ok"
            return answered
        except TimeoutError as error:
            code, cause = "unavailable", "call_timeout"
            raise Unavailable("the call took too long, try again", retry_after=1) from error
        except ServiceError as error:
            code, cause = error.code, error.cause()
            if self._check_results and known in self.methods:
                assert code in self.methods[known].errors, f"{known} does not declare {code}"
            raise
        finally:
            CURRENT_SHARE.reset(share)
            instance = getattr(call, "instance", None)
            self.metrics.call(
                CallFact(
                    known,
                    code,
                    time.perf_counter() - started,
                    context.request_id,
                    caller.key_id,
                    instance.name if instance else None,
                    cause,
                )
            )

    async def _replay(self, call: Call, params: BaseModel, repeatable: IdempotentCall) -> Answered | None:
        """The stored answer, before anything is prepared; None where there is none."""
        row = await self._database.look_up("find_answer", **_where(repeatable))
        if row is None:
            return None
        if not call.caller.is_operator:  # whose call may have taken the instance itself away
            call.instance = await call.find_instance(getattr(params, "instance", None))
        return Answered(repeatable.opened(row["request"], row["answer"]), replayed=True)

    async def _run(
        self, method: Method, call: Call, params: BaseModel, repeatable: IdempotentCall | None
    ) -> Answered:
        if method.many:
            turns = self._many
        elif "limit" in method.params.model_fields and params.limit > _LONG_LIST:  # type: ignore[attr-defined]
            turns = self._long_lists
        else:
            return await self._run_now(method, call, params, repeatable)
        async with turns.turn(CURRENT_SHARE.get()):
            return await self._run_now(method, call, params, repeatable)

    async def _run_now(
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
            # Lost perhaps while it idled, as all the others may be: reading again harms nobody.
            with contextlib.suppress(ConnectionLost):
                async with self._database.connection() as call.db:
                    return await method.handler(*arguments)
        async with self._database.connection() as call.db:
            return await method.handler(*arguments)

    async def _write(
        self, method: Method, call: Call, arguments: tuple[Any, ...], repeatable: IdempotentCall | None
    ) -> Answered:
        dry_run = call.context.dry_run
        call.single = method.single is not None and method.single(arguments[1])
        alone = call.single and not dry_run and repeatable is None
        for attempt in range(1, _ATTEMPTS + 1):
            call.after_commit.clear()
            call.changes.clear()
            try:
                if alone:
                    async with self._database.statement() as call.db:
                        return Answered(await method.handler(*arguments))
                async with self._database.transaction(dry_run=dry_run) as call.db:
                    if repeatable and not dry_run and (done := await self._claim(call, repeatable)):
                        return done
                    result = await method.handler(*arguments)
                    if not call.single:
                        await self._write_down(method, call, arguments[1])
                    if repeatable and not dry_run:
                        result = await self._keep(call, repeatable, result)
                    return Answered(result)
            except OutcomeUnknown as error:
                if repeatable is None:
                    raise
                text = "the connection was lost while committing, send it again under its idempotency key"
                raise OutcomeUnknown(text, retry_after=1) from error
            except Conflict as error:
                explained: ServiceError | None = None
                if call.explain is not None:
                    with contextlib.suppress(Unavailable):  # then without its reason
                        explained = await call.explain(error)
                raise explained or error from error.__cause__
            except (Contention, NotBegun):
                # Serialization failures, deadlocks, a connection that was lost while it idled: the whole
                # transaction again, after a jittered pause. Nothing of it has been done.
                if attempt == _ATTEMPTS:
                    raise
                await asyncio.sleep(random.uniform(0, 0.02 * 2**attempt))  # noqa: S311
        raise AssertionError("unreachable")

    async def _claim(self, call: Call, repeatable: IdempotentCall) -> Answered | None:
        """Take the idempotency key for this transaction; the stored answer if somebody was faster."""
        request, lock_id = repeatable.request, repeatable.lock_id()
        row = await call.db.one(
            "claim_idempotency_key", **_where(repeatable), request=request, lock_id=lock_id
        )
        assert row is not None
        if not row["is_free"]:
            raise StillRunning(retry_after=1)
        if row["is_claimed"]:
            return None
        stored = await call.db.one("find_answer", **_where(repeatable))
        if stored is None:  # it has had its time in between
            raise StillRunning(retry_after=1)
        return Answered(repeatable.opened(stored["request"], stored["answer"]), replayed=True)

    async def _keep(self, call: Call, repeatable: IdempotentCall, result: Any) -> Any:
        """Store the answer. It is given from the stored bytes, as it will be the next time."""
        answer = orjson.dumps(result)
        await call.db.run("keep_answer", **_where(repeatable), answer=repeatable.sealed(answer))
        return orjson.loads(answer)

    async def _write_down(self, method: Method, call: Call, params: BaseModel) -> None:
        changes = call.changes
        if not changes:
            given = params.model_dump(
                mode="json", exclude_unset=True, exclude={"instance"}, context=IN_EVENTS
            )
            changes = [Change("", call.subject, None, given)]
        instance = getattr(call, "instance", None)
        await call.db.run(
            "insert_events",
            instance_id=instance.id if instance else 0,
            types=[change.type or method.name for change in changes],
            user_ids=[change.user_id for change in changes],
            befores=[change.before for change in changes],
            afters=[change.after for change in changes],
            **call.author(),
        )


def _repeatable(method: Method, call: Call, params: object) -> IdempotentCall | None:
    caller, key = call.caller, call.context.idempotency_key
    if key is None or not method.writes or not method.keeps_answer:
        return None
    instance_id = caller.default_instance.id if caller.default_instance else 0
    return IdempotentCall(caller.secret, instance_id, caller.key_id, key, method.name, params)


def _where(repeatable: IdempotentCall) -> dict[str, Any]:
    return {
        "instance_id": repeatable.instance_id, "key_id": repeatable.key_id, "name": repeatable.name,
    }  # fmt: skip
