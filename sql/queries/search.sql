-- name: search_users(instance_id, pattern, account_id, sort_1, sort_2, sort_3, sort_4, row_offset, row_limit)
-- Living users whose address or name holds the pattern, or whose account has the given id.
-- A sort is one of id, user, email, fullname, each also with a minus, or null.
WITH matching AS MATERIALIZED (
    SELECT u.id AS user_id
    FROM users AS u
    WHERE u.instance_id = :instance_id AND u.deleted_at IS NULL AND u.search_text LIKE lower(:pattern)
    UNION
    SELECT a.user_id
    FROM accounts AS a
    WHERE a.instance_id = :instance_id AND a.id = :account_id AND a.deleted_at IS NULL
)

SELECT
    a.id, u.id AS "user", u.email, u.full_name AS fullname, NULL::bigint AS "positionId",
    count(*) OVER () AS total
FROM matching
INNER JOIN users AS u ON u.instance_id = :instance_id AND u.id = matching.user_id AND u.deleted_at IS NULL
LEFT JOIN accounts AS a ON a.instance_id = :instance_id AND a.user_id = u.id AND a.deleted_at IS NULL
ORDER BY
    CASE :sort_1::text WHEN 'id' THEN a.id WHEN 'user' THEN u.id END,
    CASE :sort_1::text WHEN '-id' THEN a.id WHEN '-user' THEN u.id END DESC NULLS LAST,
    CASE :sort_1::text WHEN 'email' THEN u.email_key WHEN 'fullname' THEN lower(u.full_name) END,
    CASE :sort_1::text WHEN '-email' THEN u.email_key WHEN '-fullname' THEN lower(u.full_name) END DESC,
    CASE :sort_2::text WHEN 'id' THEN a.id WHEN 'user' THEN u.id END,
    CASE :sort_2::text WHEN '-id' THEN a.id WHEN '-user' THEN u.id END DESC NULLS LAST,
    CASE :sort_2::text WHEN 'email' THEN u.email_key WHEN 'fullname' THEN lower(u.full_name) END,
    CASE :sort_2::text WHEN '-email' THEN u.email_key WHEN '-fullname' THEN lower(u.full_name) END DESC,
    CASE :sort_3::text WHEN 'id' THEN a.id WHEN 'user' THEN u.id END,
    CASE :sort_3::text WHEN '-id' THEN a.id WHEN '-user' THEN u.id END DESC NULLS LAST,
    CASE :sort_3::text WHEN 'email' THEN u.email_key WHEN 'fullname' THEN lower(u.full_name) END,
    CASE :sort_3::text WHEN '-email' THEN u.email_key WHEN '-fullname' THEN lower(u.full_name) END DESC,
    CASE :sort_4::text WHEN 'id' THEN a.id WHEN 'user' THEN u.id END,
    CASE :sort_4::text WHEN '-id' THEN a.id WHEN '-user' THEN u.id END DESC NULLS LAST,
    CASE :sort_4::text WHEN 'email' THEN u.email_key WHEN 'fullname' THEN lower(u.full_name) END,
    CASE :sort_4::text WHEN '-email' THEN u.email_key WHEN '-fullname' THEN lower(u.full_name) END DESC,
    u.id
OFFSET :row_offset
LIMIT :row_limit;

-- name: search_downline(instance_id, tree_id, path, is_small, pattern, account_id, sort_1, sort_2, sort_3, sort_4, row_offset, row_limit)
-- The same among those who stand beneath a place. Where few do, their names are looked through; where many
-- do, those who match are found first, and then where they stand. A prepared statement has one plan for
-- both, which cannot know, so that the caller says with is_small; the other half then costs nothing.
WITH beneath AS MATERIALIZED (
    SELECT id, account_id
    FROM positions
    WHERE
        :is_small::boolean AND instance_id = :instance_id AND path <@ :path::text::ltree
        AND subpath(path, 0, 100) <@ subpath(:path::text::ltree, 0, 100) -- what the index knows
        AND nlevel(path) > nlevel(:path::text::ltree)
),

named AS MATERIALIZED (
    SELECT id
    FROM users
    WHERE
        NOT :is_small::boolean AND instance_id = :instance_id AND deleted_at IS NULL
        AND search_text LIKE lower(:pattern)
    UNION
    SELECT user_id
    FROM accounts
    WHERE NOT :is_small::boolean AND instance_id = :instance_id AND id = :account_id
),

matching AS MATERIALIZED (
    SELECT beneath.id AS position_id, beneath.account_id, u.id AS user_id
    FROM beneath
    INNER JOIN accounts AS a
        ON a.instance_id = :instance_id AND a.id = beneath.account_id AND a.deleted_at IS NULL
    INNER JOIN users AS u ON u.instance_id = :instance_id AND u.id = a.user_id AND u.deleted_at IS NULL
    WHERE u.search_text LIKE lower(:pattern) OR a.id = :account_id
    UNION ALL
    SELECT p.id, p.account_id, u.id
    FROM named
    INNER JOIN users AS u ON u.instance_id = :instance_id AND u.id = named.id AND u.deleted_at IS NULL
    INNER JOIN accounts AS a
        ON a.instance_id = :instance_id AND a.user_id = named.id AND a.deleted_at IS NULL
    INNER JOIN positions AS p
        ON p.instance_id = :instance_id AND p.tree_id = :tree_id AND p.account_id = a.id
    WHERE p.path <@ :path::text::ltree AND nlevel(p.path) > nlevel(:path::text::ltree)
)

SELECT
    matching.account_id AS id, u.id AS "user", u.email, u.full_name AS fullname,
    matching.position_id AS "positionId", count(*) OVER () AS total
FROM matching
INNER JOIN users AS u ON u.instance_id = :instance_id AND u.id = matching.user_id
ORDER BY
    CASE :sort_1::text WHEN 'id' THEN matching.account_id WHEN 'user' THEN u.id END,
    CASE :sort_1::text WHEN '-id' THEN matching.account_id WHEN '-user' THEN u.id END DESC NULLS LAST,
    CASE :sort_1::text WHEN 'email' THEN u.email_key WHEN 'fullname' THEN lower(u.full_name) END,
    CASE :sort_1::text WHEN '-email' THEN u.email_key WHEN '-fullname' THEN lower(u.full_name) END DESC,
    CASE :sort_2::text WHEN 'id' THEN matching.account_id WHEN 'user' THEN u.id END,
    CASE :sort_2::text WHEN '-id' THEN matching.account_id WHEN '-user' THEN u.id END DESC NULLS LAST,
    CASE :sort_2::text WHEN 'email' THEN u.email_key WHEN 'fullname' THEN lower(u.full_name) END,
    CASE :sort_2::text WHEN '-email' THEN u.email_key WHEN '-fullname' THEN lower(u.full_name) END DESC,
    CASE :sort_3::text WHEN 'id' THEN matching.account_id WHEN 'user' THEN u.id END,
    CASE :sort_3::text WHEN '-id' THEN matching.account_id WHEN '-user' THEN u.id END DESC NULLS LAST,
    CASE :sort_3::text WHEN 'email' THEN u.email_key WHEN 'fullname' THEN lower(u.full_name) END,
    CASE :sort_3::text WHEN '-email' THEN u.email_key WHEN '-fullname' THEN lower(u.full_name) END DESC,
    CASE :sort_4::text WHEN 'id' THEN matching.account_id WHEN 'user' THEN u.id END,
    CASE :sort_4::text WHEN '-id' THEN matching.account_id WHEN '-user' THEN u.id END DESC NULLS LAST,
    CASE :sort_4::text WHEN 'email' THEN u.email_key WHEN 'fullname' THEN lower(u.full_name) END,
    CASE :sort_4::text WHEN '-email' THEN u.email_key WHEN '-fullname' THEN lower(u.full_name) END DESC,
    u.id
OFFSET :row_offset
LIMIT :row_limit;

-- name: count_beneath(instance_id, path, most)$
-- How many stand beneath a place, counted no further than asked.
SELECT count(*) AS places
FROM (
    SELECT id
    FROM positions
    WHERE
        instance_id = :instance_id AND path <@ :path::text::ltree
        AND subpath(path, 0, 100) <@ subpath(:path::text::ltree, 0, 100) -- what the index knows
    LIMIT :most
) AS counted;
