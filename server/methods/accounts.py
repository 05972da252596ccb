"""Accounts in sponsor trees: placing, moving and looking at them (seeds/001 and its neighbours)."""

from typing import Annotated, Any

from pydantic import Field

from server.base.errors import FieldError, Invalid, NotFound
from server.base.models import Result, TenantParams
from server.methods.registry import Example, method
from server.tenants.call import Call

Id = Annotated[int, Field(ge=1, lt=2**63)]
TreeId = Annotated[int, Field(ge=0, lt=2**31)]

MAX_DEPTH = 1000
"""Levels of a tree; the constraint positions_depth keeps it."""


class AddToTree(TenantParams):
    """Where an account is to stand."""

    accountId: Id
    sponsorPositionId: Id | None = Field(
        None, description="The position above it; null: the root of a tree that is empty."
    )
    treeId: TreeId = 0


class Position(Result):
    """A place in a tree."""

    positionId: int


async def insert_account(call: Call, user_id: int, sponsor_id: int, title: str) -> dict[str, Any]:
    """An account for a new user, placed under its sponsor's unless the instance places by hand.

    Raises:
        Invalid: there is no such sponsor, it stands nowhere in tree 0, or too deep in it.
    """
    row = await call.db.one(
        "create_account",
        instance_id=call.instance.id,
        user_id=user_id,
        sponsor_id=sponsor_id,
        title=title,
        placed=not call.instance.settings.positionsByHand,
    )
    if row is None:
        raise Invalid.of([FieldError("sponsorId", "is no account with a place in tree 0")])
    return dict(row)


@method(
    "addToTree",
    result=Position,
    scope="accounts:write",
    writes=True,
    errors=(NotFound, "already_placed", "too_deep"),
    examples=(
        Example("The root of another tree", {"accountId": 1, "treeId": 7}, {"positionId": 2}),
    ),
)  # fmt: skip
async def add_to_tree(call: Call, params: AddToTree) -> Any:
    """Give an account a place in a tree.

    An account stands at most once in a tree, so that a place can never be beneath itself.
    """
    # Held first, as by movePosition: a tree that is empty gets one root.
    await call.db.run("lock_trees", instance_id=call.instance.id)
    position_id = await call.db.value(
        "add_position",
        instance_id=call.instance.id,
        account_id=params.accountId,
        tree_id=params.treeId,
        parent_id=params.sponsorPositionId,
    )
    if position_id is None:
        raise NotFound("no such account or position in this tree, or it has a root already")
    call.audit_only(after=params.model_dump(exclude={"instance"}) | {"positionId": position_id})
    return {"positionId": position_id}


class MovePosition(TenantParams):
    """Where a place is to go."""

    positionId: Id
    sponsorPositionId: Id = Field(description="The position above it from now on, in the same tree.")


class Moved(Result):
    """How much went along."""

    moved: int = Field(description="The place itself and all beneath it.")


@method(
    "movePosition",
    result=Moved,
    scope="accounts:write",
    writes=True,
    errors=(NotFound, "too_deep"),
    examples=(
        Example("From the root to another", {"positionId": 3, "sponsorPositionId": 2}, {"moved": 1}),
    ),
)  # fmt: skip
async def move_position(call: Call, params: MovePosition) -> Any:
    """Put a place, with everything beneath it, under another place of its tree.

    It cannot go beneath itself: a tree has no cycles, under concurrent moves either.
    """
    # Held first: the statement after it then sees every place that was taken meanwhile.
    await call.db.run("lock_trees", instance_id=call.instance.id)
    moved = await call.db.all(
        "move_position",
        instance_id=call.instance.id,
        position_id=params.positionId,
        parent_id=params.sponsorPositionId,
    )
    if not moved:
        raise NotFound("there are no such two positions in one tree, or one lies beneath the other")
    place = {"positionId": params.positionId}
    call.audit_only(
        before=place | {"sponsorPositionId": moved[0]["old_parent_id"]},
        after=place | {"sponsorPositionId": params.sponsorPositionId, "moved": len(moved)},
    )
    return {"moved": len(moved)}


class GetBranch(TenantParams):
    """Whose branch, and how much of it."""

    accountId: Id
    treeId: TreeId = 0
    depth: Annotated[int, Field(ge=1, le=MAX_DEPTH)] = Field(1, description="Levels beneath the account.")
    limit: Annotated[int, Field(ge=1, le=1000)] = 100


class BranchPosition(Result):
    """A place beneath the account."""

    positionId: int
    parentPositionId: int
    accountId: int
    title: str
    userId: int | None = Field(description="null where the account is closed.")
    level: int = Field(description="1 for those right beneath the account.")


async def find_position(call: Call, account_id: int, tree_id: int) -> Any:
    """Where an account stands in a tree.

    Raises:
        NotFound: nowhere.
    """
    row = await call.db.one(
        "find_position", instance_id=call.instance.id, account_id=account_id, tree_id=tree_id
    )
    if row is None:
        raise NotFound("the account has no position in this tree", code="no_position")
    return row


@method(
    "getBranch",
    result=list[BranchPosition],
    scope="accounts:read",
    writes=False,
    errors=("no_position",),
    examples=(
        Example(
            "The first level",
            {"accountId": 1},
            [{"positionId": 2, "parentPositionId": 1, "accountId": 2, "title": "Ann Lee", "userId": 4,
              "level": 1}],
        ),
    ),
)  # fmt: skip
async def get_branch(call: Call, params: GetBranch) -> Any:
    """The places beneath an account, level by level.

    A closed account keeps its place, without a user, for those beneath it.
    """
    top = await find_position(call, params.accountId, params.treeId)
    rows = await call.db.all(
        "get_branch",
        instance_id=call.instance.id,
        position_id=top["id"],
        depth=params.depth,
        row_limit=params.limit,
    )
    return [dict(row) for row in rows]
