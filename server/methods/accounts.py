"""Accounts in sponsor trees: adding, moving and listing positions (seeds/001)."""

from typing import Annotated, Any

from pydantic import Field

from server.base.errors import FieldError, Invalid, NotFound
from server.base.models import Id, Result, TenantParams
from server.base.pages import Limit
from server.methods.registry import Example, method
from server.tenants.call import Call

TreeId = Annotated[int, Field(ge=0, lt=2**31)]

MAX_DEPTH = 1000
"""Levels of a tree, as in the constraint positions_depth."""


class AddToTree(TenantParams):
    """A new position for an account."""

    accountId: Id
    sponsorPositionId: Id | None = Field(None, description="The position above. Null: root of an empty tree.")
    treeId: TreeId = 0


class Position(Result):
    """A position in a tree."""

    positionId: int


async def insert_account(call: Call, user_id: int, sponsor_id: int, title: str) -> dict[str, Any]:
    """Create an account for a new user, below its sponsor unless the instance has positionsByHand.

    Raises:
        Invalid: the sponsor does not exist, has no position in tree 0, or is at the deepest level.
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
    """Give an account a position in a tree. An account has at most one position in each tree."""
    # Lock first: of concurrent calls on an empty tree, one adds the root.
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
    """A position and its new sponsor."""

    positionId: Id
    sponsorPositionId: Id = Field(description="The new position above, in the same tree.")


class Moved(Result):
    """How many positions were moved."""

    moved: int = Field(description="The position and all positions below it.")


@method(
    "movePosition",
    result=Moved,
    scope="accounts:write",
    writes=True,
    errors=(NotFound, "too_deep"),
    examples=(
        Example("Under another sponsor", {"positionId": 3, "sponsorPositionId": 2}, {"moved": 1}),
    ),
)  # fmt: skip
async def move_position(call: Call, params: MovePosition) -> Any:
    """Move a position, with all positions below it, under another position of the same tree.

    A position cannot move below itself. Concurrent moves cannot make a cycle either.
    """
    # Lock first: the next statement then sees all committed positions.
    await call.db.run("lock_trees", instance_id=call.instance.id)
    moved = await call.db.all(
        "move_position",
        instance_id=call.instance.id,
        position_id=params.positionId,
        parent_id=params.sponsorPositionId,
    )
    if not moved:
        raise NotFound("there are no such two positions in one tree, or one lies beneath the other")
    call.audit_only(
        before={"positionId": params.positionId, "sponsorPositionId": moved[0]["old_parent_id"]},
        after=params.model_dump(exclude={"instance"}) | {"moved": len(moved)},
    )
    return {"moved": len(moved)}


class GetBranch(TenantParams):
    """An account, and how many levels and positions below it."""

    accountId: Id
    treeId: TreeId = 0
    depth: Annotated[int, Field(ge=1, le=MAX_DEPTH)] = Field(1, description="Levels below the account.")
    limit: Limit = 100


class BranchPosition(Result):
    """A position below the account."""

    positionId: int
    parentPositionId: int
    accountId: int
    title: str
    userId: int | None = Field(description="Null: the account is closed.")
    level: int = Field(description="1: directly below the account.")


async def find_position(call: Call, account_id: int, tree_id: int) -> Any:
    """The position of an account in a tree.

    Raises:
        NotFound: it has none.
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
    """List the positions below an account, level by level.

    A closed account keeps its position, without a user.
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
