-- name: sample_users(instance_id, searched, most)^
-- How many of a random sample (size: most) of users match a text, and the numbers of users, accounts and positions.
-- Multiplying by a prime spreads the ids.
SELECT
    counters.living_users AS users, counters.accounts, counters.positions, count(taken.id) AS sampled,
    count(taken.id) FILTER (WHERE strpos(taken.search_text, lower(:searched)) > 0) AS matching
FROM instance_counters AS counters
CROSS JOIN generate_series(1, :most::bigint) AS lot
LEFT JOIN LATERAL (
    SELECT id, search_text FROM users
    WHERE
        instance_id = :instance_id AND id = 1 + lot * 2654435761 % greatest(counters.users, 1)
        AND deleted_at IS NULL
    OFFSET 0
) AS taken ON true
WHERE counters.instance_id = :instance_id
GROUP BY counters.living_users, counters.accounts, counters.positions;

-- name: search_users(instance_id, tree_id, path, searched, pattern, walks, tie, walk_rows, wanted, account_id, sorts, row_offset, row_limit)
-- Users whose address or name contains a text, or whose account has the id account_id: of the instance or, if path is not
-- null, of those below that position of a tree. walks chooses the branches of candidates that run, with walk_rows rows each;
-- the first matches, as many as wanted (null: all), are sorted and paged.
--   id, -id: users with an account, in the order of the accounts
--   user, -user, email, -email, fullname, -fullname: all users in that order; after id or -id those without an account.
--     tie: the order of users with the same name
--   trigrams, bigrams: users found by these indexes
--   all: all users below the position
-- The caller chooses, because a prepared statement has one plan for every text. OFFSET 0 makes the planner, which
-- overestimates the branches, join row by row. sorts: one to three of the orders above.
WITH candidates AS (
    SELECT user_id AS id, NULL AS search_text, true AS has_account, true AS is_asked_for
    FROM accounts
    WHERE instance_id = :instance_id AND id = :account_id AND deleted_at IS NULL
    UNION ALL
    SELECT named.id, named.search_text, true AS has_account, false AS is_asked_for
    FROM (
        (
            SELECT user_id, NULL::ltree AS path FROM accounts
            WHERE
                'id' = any(:walks::text[]) AND :path::text IS NULL AND instance_id = :instance_id
                AND deleted_at IS NULL
            ORDER BY id LIMIT :walk_rows
        )
        UNION ALL
        (
            SELECT user_id, NULL::ltree AS path FROM accounts
            WHERE
                '-id' = any(:walks::text[]) AND :path::text IS NULL AND instance_id = :instance_id
                AND deleted_at IS NULL
            ORDER BY id DESC LIMIT :walk_rows
        )
        UNION ALL
        (
            SELECT user_id, path FROM positions
            WHERE
                'id' = any(:walks::text[]) AND :path::text IS NOT NULL AND instance_id = :instance_id
                AND tree_id = :tree_id
            ORDER BY account_id LIMIT :walk_rows
        )
        UNION ALL
        (
            SELECT user_id, path FROM positions
            WHERE
                '-id' = any(:walks::text[]) AND :path::text IS NOT NULL AND instance_id = :instance_id
                AND tree_id = :tree_id
            ORDER BY account_id DESC LIMIT :walk_rows
        )
        UNION ALL
        SELECT user_id, path FROM positions
        WHERE
            'all' = any(:walks::text[]) AND instance_id = :instance_id
            AND subpath(path, 0, 100) >= subpath(:path::text::ltree, 0, 100)
            -- Labels are numbers: only positions below this one sort between its path and the path with a zero added.
            AND subpath(path, 0, 100) < text2ltree(ltree2text(subpath(:path::text::ltree, 0, 100)) || '0')
    ) AS walked
    CROSS JOIN LATERAL (
        SELECT id, search_text FROM users
        WHERE
            (:path::text IS NULL OR walked.path <@ :path::text::ltree)
            AND instance_id = :instance_id AND id = walked.user_id AND deleted_at IS NULL
        OFFSET 0
    ) AS named
    UNION ALL
    (
        SELECT id, search_text, false AS has_account, false AS is_asked_for FROM users
        WHERE 'user' = any(:walks::text[]) AND instance_id = :instance_id AND deleted_at IS NULL
        ORDER BY id LIMIT :walk_rows
    )
    UNION ALL
    (
        SELECT id, search_text, false AS has_account, false AS is_asked_for FROM users
        WHERE '-user' = any(:walks::text[]) AND instance_id = :instance_id AND deleted_at IS NULL
        ORDER BY id DESC LIMIT :walk_rows
    )
    UNION ALL
    (
        SELECT id, search_text, false AS has_account, false AS is_asked_for FROM users
        WHERE 'email' = any(:walks::text[]) AND instance_id = :instance_id AND deleted_at IS NULL
        ORDER BY email_key LIMIT :walk_rows
    )
    UNION ALL
    (
        SELECT id, search_text, false AS has_account, false AS is_asked_for FROM users
        WHERE '-email' = any(:walks::text[]) AND instance_id = :instance_id AND deleted_at IS NULL
        ORDER BY email_key DESC LIMIT :walk_rows
    )
    UNION ALL
    (
        SELECT id, search_text, false AS has_account, false AS is_asked_for FROM users
        WHERE 'fullname' = any(:walks::text[]) AND instance_id = :instance_id AND deleted_at IS NULL
        ORDER BY
            lower(full_name),
            (
                SELECT CASE :tie::text WHEN 'id' THEN a.id ELSE -a.id END
                FROM accounts AS a
                WHERE
                    :tie::text IN ('id', '-id') AND a.instance_id = :instance_id AND a.user_id = users.id
                    AND a.deleted_at IS NULL
            ),
            CASE :tie::text WHEN 'email' THEN email_key END,
            CASE :tie::text WHEN '-email' THEN email_key END DESC,
            CASE :tie::text WHEN '-user' THEN -id ELSE id END
        LIMIT :walk_rows
    )
    UNION ALL
    (
        SELECT id, search_text, false AS has_account, false AS is_asked_for FROM users
        WHERE '-fullname' = any(:walks::text[]) AND instance_id = :instance_id AND deleted_at IS NULL
        ORDER BY
            lower(full_name) DESC,
            (
                SELECT CASE :tie::text WHEN 'id' THEN a.id ELSE -a.id END
                FROM accounts AS a
                WHERE
                    :tie::text IN ('id', '-id') AND a.instance_id = :instance_id AND a.user_id = users.id
                    AND a.deleted_at IS NULL
            ),
            CASE :tie::text WHEN 'email' THEN email_key END,
            CASE :tie::text WHEN '-email' THEN email_key END DESC,
            CASE :tie::text WHEN '-user' THEN -id ELSE id END
        LIMIT :walk_rows
    )
    UNION ALL
    SELECT id, search_text, false AS has_account, false AS is_asked_for FROM users
    WHERE
        'trigrams' = any(:walks::text[]) AND instance_id = :instance_id AND deleted_at IS NULL
        AND search_text LIKE lower(:pattern)
    UNION ALL
    SELECT id, search_text, false AS has_account, false AS is_asked_for FROM users
    WHERE
        'bigrams' = any(:walks::text[]) AND instance_id = :instance_id AND deleted_at IS NULL
        AND bigrams(search_text) @@ bigrams_of(lower(:searched))
),

matching AS (
    SELECT candidates.id, beneath.id AS position_id
    FROM candidates
    LEFT JOIN LATERAL (
        SELECT id FROM positions
        WHERE
            :path::text IS NOT NULL AND instance_id = :instance_id AND tree_id = :tree_id
            AND user_id = candidates.id AND path <@ :path::text::ltree AND nlevel(path) > nlevel(:path::text::ltree)
        OFFSET 0
    ) AS beneath ON true
    WHERE
        (candidates.is_asked_for OR strpos(candidates.search_text, lower(:searched)) > 0)
        AND (:path::text IS NULL OR beneath.id IS NOT NULL)
        AND (
            candidates.has_account OR cardinality(:walks::text[]) = 1
            OR (
                SELECT a.id FROM accounts AS a
                WHERE a.instance_id = :instance_id AND a.user_id = candidates.id AND a.deleted_at IS NULL
            ) IS NULL
        )
    LIMIT :wanted
)

SELECT a.id, u.id AS "user", u.email, u.full_name AS fullname, found.position_id AS "positionId", count(*) OVER () AS total
FROM (SELECT DISTINCT id, position_id FROM matching) AS found
CROSS JOIN LATERAL (
    SELECT id, email, email_key, full_name FROM users
    WHERE instance_id = :instance_id AND id = found.id AND deleted_at IS NULL
    OFFSET 0
) AS u
LEFT JOIN LATERAL (
    SELECT id FROM accounts
    WHERE instance_id = :instance_id AND user_id = found.id AND deleted_at IS NULL
    OFFSET 0
) AS a ON true
ORDER BY
    CASE (:sorts::text[])[1] WHEN 'id' THEN a.id WHEN '-id' THEN -a.id WHEN 'user' THEN u.id WHEN '-user' THEN -u.id END,
    CASE (:sorts::text[])[1] WHEN 'email' THEN u.email_key WHEN 'fullname' THEN lower(u.full_name) END,
    CASE (:sorts::text[])[1] WHEN '-email' THEN u.email_key WHEN '-fullname' THEN lower(u.full_name) END DESC,
    CASE (:sorts::text[])[2] WHEN 'id' THEN a.id WHEN '-id' THEN -a.id WHEN 'user' THEN u.id WHEN '-user' THEN -u.id END,
    CASE (:sorts::text[])[2] WHEN 'email' THEN u.email_key WHEN 'fullname' THEN lower(u.full_name) END,
    CASE (:sorts::text[])[2] WHEN '-email' THEN u.email_key WHEN '-fullname' THEN lower(u.full_name) END DESC,
    CASE (:sorts::text[])[3] WHEN 'id' THEN a.id WHEN '-id' THEN -a.id WHEN 'user' THEN u.id WHEN '-user' THEN -u.id END,
    CASE (:sorts::text[])[3] WHEN 'email' THEN u.email_key WHEN 'fullname' THEN lower(u.full_name) END,
    CASE (:sorts::text[])[3] WHEN '-email' THEN u.email_key WHEN '-fullname' THEN lower(u.full_name) END DESC,
    u.id
OFFSET :row_offset LIMIT :row_limit;

-- name: count_beneath(instance_id, path, positions, most, lots)^
-- How many positions are at or below one, counted up to most; and how many of a random sample (size: lots) of all
-- positions are among them.
SELECT
    (
        SELECT count(*)
        FROM (
            SELECT id FROM positions
            WHERE
                instance_id = :instance_id
                AND subpath(path, 0, 100) >= subpath(:path::text::ltree, 0, 100)
                AND subpath(path, 0, 100) < text2ltree(ltree2text(subpath(:path::text::ltree, 0, 100)) || '0')
            LIMIT :most
        ) AS counted
    ) AS places,
    (
        SELECT count(*)
        FROM generate_series(1, :lots::bigint) AS lot
        CROSS JOIN LATERAL (
            SELECT path FROM positions
            WHERE instance_id = :instance_id AND id = 1 + lot * 2654435761 % greatest(:positions::bigint, 1)
            OFFSET 0
        ) AS taken
        WHERE taken.path <@ :path::text::ltree
    ) AS sampled;
