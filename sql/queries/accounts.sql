-- name: create_account(instance_id, user_id, sponsor_id, title, placed)^
-- Creates an account under its sponsor, with a position under the sponsor's in tree 0 if placed is true. A null
-- sponsor: the first account of an instance, its administrator's, at the root. No row if the sponsor does not exist,
-- or has no position in tree 0 although placed is true.
WITH sponsor AS (
    SELECT a.id, p.id AS position_id, p.path
    FROM accounts AS a
    LEFT JOIN positions AS p ON p.instance_id = :instance_id AND p.tree_id = 0 AND p.account_id = a.id
    WHERE
        a.instance_id = :instance_id AND a.id = :sponsor_id AND a.deleted_at IS NULL
        AND (p.path IS NOT NULL OR NOT :placed::boolean)
    UNION ALL
    SELECT NULL, NULL, text2ltree('i' || :instance_id::bigint || '.t0') WHERE :sponsor_id::bigint IS NULL
),

counter AS (
    UPDATE instance_counters
    SET
        accounts = accounts + 1,
        positions = positions + CASE WHEN :placed::boolean THEN 1 ELSE 0 END
    WHERE instance_id = :instance_id AND EXISTS (SELECT FROM sponsor)
    RETURNING accounts AS account_id, positions AS position_id
),

new_account AS (
    INSERT INTO accounts (instance_id, id, user_id, sponsor_id, title)
    SELECT :instance_id, counter.account_id, :user_id, sponsor.id, :title
    FROM counter
    CROSS JOIN sponsor
    RETURNING id, title
),

new_position AS (
    INSERT INTO positions (instance_id, id, tree_id, account_id, user_id, parent_id, path)
    SELECT
        :instance_id, counter.position_id, 0, counter.account_id, :user_id, sponsor.position_id,
        sponsor.path || counter.position_id::text
    FROM counter
    CROSS JOIN sponsor
    WHERE :placed::boolean
)

SELECT id, title FROM new_account;

-- name: add_position(instance_id, account_id, tree_id, parent_id)^
-- Gives an account a position under another one of the tree or, with a null parent, at the root of an empty tree.
WITH parent AS (
    SELECT path FROM positions
    WHERE instance_id = :instance_id AND tree_id = :tree_id AND id = :parent_id
),

place AS (
    SELECT path FROM parent
    UNION ALL
    SELECT text2ltree('i' || :instance_id::bigint || '.t' || :tree_id::integer)
    WHERE
        :parent_id::bigint IS NULL
        AND (
            SELECT taken.account_id FROM positions AS taken
            WHERE taken.instance_id = :instance_id AND taken.tree_id = :tree_id
            ORDER BY taken.account_id -- uses the index, so an empty tree is found at once
            LIMIT 1
        ) IS NULL
),

counter AS (
    UPDATE instance_counters
    SET positions = positions + 1
    WHERE instance_id = :instance_id AND EXISTS (SELECT FROM place)
    RETURNING positions AS position_id
)

INSERT INTO positions (instance_id, id, tree_id, account_id, user_id, parent_id, path)
SELECT
    :instance_id, counter.position_id, :tree_id, a.id, a.user_id, :parent_id,
    place.path || counter.position_id::text
FROM counter
CROSS JOIN place
INNER JOIN accounts AS a ON a.instance_id = :instance_id AND a.id = :account_id AND a.deleted_at IS NULL
RETURNING id;

-- name: lock_trees(instance_id)!
-- Locks the trees of the instance until the transaction ends: add_position and create_account lock this row too.
SELECT instance_id FROM instance_counters
WHERE instance_id = :instance_id
FOR NO KEY UPDATE;

-- name: move_position(instance_id, position_id, parent_id)
-- Moves a position, with all below it, under another one of its tree; no row if the new parent is itself below it.
WITH moved AS (
    SELECT p.path AS old_path, p.parent_id AS old_parent_id, parent.path AS new_parent
    FROM positions AS p
    INNER JOIN positions AS parent
        ON parent.instance_id = :instance_id AND p.tree_id = parent.tree_id
        AND parent.id = :parent_id AND NOT parent.path <@ p.path
    WHERE p.instance_id = :instance_id AND p.id = :position_id
)

UPDATE positions
SET
    path = moved.new_parent || subpath(positions.path, nlevel(moved.old_path) - 1),
    parent_id = CASE WHEN positions.id = :position_id THEN :parent_id ELSE positions.parent_id END
FROM moved
WHERE
    positions.instance_id = :instance_id AND positions.path <@ moved.old_path
    -- What the index holds; see search_users.
    AND subpath(positions.path, 0, 100) >= subpath(moved.old_path, 0, 100)
    AND subpath(positions.path, 0, 100) < text2ltree(ltree2text(subpath(moved.old_path, 0, 100)) || '0')
RETURNING positions.id, moved.old_parent_id;

-- name: find_position(instance_id, account_id, tree_id)^
-- The position of an account in a tree.
SELECT p.id, p.path::text AS path
FROM positions AS p
INNER JOIN accounts AS a ON a.instance_id = :instance_id AND a.id = p.account_id
WHERE
    p.instance_id = :instance_id AND p.tree_id = :tree_id AND p.account_id = :account_id
    AND a.deleted_at IS NULL;

-- name: get_branch(instance_id, position_id, depth, row_limit)
-- The positions below one, level by level, down to a depth and up to row_limit. A closed account keeps its position,
-- for the accounts below it.
WITH RECURSIVE branch AS (
    SELECT id, parent_id, account_id, user_id, 1 AS level
    FROM (
        SELECT id, parent_id, account_id, user_id FROM positions
        WHERE instance_id = :instance_id AND parent_id = :position_id
        ORDER BY id LIMIT :row_limit
    ) AS first_level
    UNION ALL
    SELECT p.id, p.parent_id, p.account_id, p.user_id, branch.level + 1
    FROM branch
    INNER JOIN positions AS p ON p.instance_id = :instance_id AND p.parent_id = branch.id
    WHERE branch.level < :depth
),

shown AS (
    SELECT id, parent_id, account_id, user_id, level FROM branch
    LIMIT :row_limit
)

SELECT
    shown.id AS "positionId", shown.parent_id AS "parentPositionId", a.id AS "accountId", a.title,
    CASE WHEN a.deleted_at IS NULL THEN a.user_id END AS "userId", shown.level
FROM shown
INNER JOIN accounts AS a ON a.instance_id = :instance_id AND a.id = shown.account_id
ORDER BY shown.level, shown.id;
