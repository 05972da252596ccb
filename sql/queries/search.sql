-- name: sample_users(instance_id, searched, most)^
-- How many of so many users match a text, and how much there is to look through. The ids are scattered by a
-- prime, as if drawn by lot.
SELECT
    counters.living_users AS users, counters.accounts, counters.positions, count(taken.id) AS sampled,
    count(taken.id) FILTER (WHERE strpos(taken.search_text, lower(:searched)) > 0) AS matching
FROM instance_counters AS counters
CROSS JOIN generate_series(1, :most::bigint) AS lot
LEFT JOIN LATERAL (
    SELECT id, search_text
    FROM users
    WHERE
        instance_id = :instance_id AND id = 1 + lot * 2654435761 % greatest(counters.users, 1)
        AND deleted_at IS NULL
    OFFSET 0
) AS taken ON true
WHERE counters.instance_id = :instance_id
GROUP BY counters.living_users, counters.accounts, counters.positions;

-- name: search_users(instance_id, searched, pattern, accounts_first, way, tie, walk_rows, wanted, account_id, sort_1, sort_2, sort_3, sort_4, row_offset, row_limit)
-- Living users whose address or name holds a text, or whose account has the given id, found in one way:
-- user, -user, email, -email, fullname and -fullname walk through everybody in that order, for so many rows or
-- until so many match, which a common text does at once; trigrams and bigrams ask the index for all that match,
-- which are few if the text is not common. A prepared statement has one plan for every text: this is why the
-- caller chooses, and why the parts are joined row by row (OFFSET 0 keeps the planner from turning that around,
-- as it takes them for large). accounts_first (id, -id or empty) walks those with an account first, in that order, and
-- through the others only if it came to the end. tie orders those of one name. A sort is any of these words or null.
WITH looked AS (
    SELECT
        greatest(living_users, accounts) <= :walk_rows AS through,
        :accounts_first = '' OR accounts <= :walk_rows AS accounts_through,
        CASE WHEN greatest(living_users, accounts) > :walk_rows THEN :wanted::bigint END AS enough
    FROM instance_counters
    WHERE instance_id = :instance_id
),

with_account AS (
    (
        SELECT named.id
        FROM (
            SELECT user_id
            FROM accounts
            WHERE :accounts_first = 'id' AND instance_id = :instance_id AND deleted_at IS NULL
            ORDER BY id
            LIMIT :walk_rows
        ) AS walked
        CROSS JOIN LATERAL (
            SELECT id
            FROM users
            WHERE
                instance_id = :instance_id AND id = walked.user_id AND deleted_at IS NULL
                AND strpos(search_text, lower(:searched)) > 0
            OFFSET 0
        ) AS named
        LIMIT (SELECT enough FROM looked)
    )
    UNION ALL
    (
        SELECT named.id
        FROM (
            SELECT user_id
            FROM accounts
            WHERE :accounts_first = '-id' AND instance_id = :instance_id AND deleted_at IS NULL
            ORDER BY id DESC
            LIMIT :walk_rows
        ) AS walked
        CROSS JOIN LATERAL (
            SELECT id
            FROM users
            WHERE
                instance_id = :instance_id AND id = walked.user_id AND deleted_at IS NULL
                AND strpos(search_text, lower(:searched)) > 0
            OFFSET 0
        ) AS named
        LIMIT (SELECT enough FROM looked)
    )
),

everybody AS (
    (
        SELECT id, search_text
        FROM users
        WHERE :way = 'user' AND instance_id = :instance_id AND deleted_at IS NULL
        ORDER BY id
        LIMIT :walk_rows
    )
    UNION ALL
    (
        SELECT id, search_text
        FROM users
        WHERE :way = '-user' AND instance_id = :instance_id AND deleted_at IS NULL
        ORDER BY id DESC
        LIMIT :walk_rows
    )
    UNION ALL
    (
        SELECT id, search_text
        FROM users
        WHERE :way = 'email' AND instance_id = :instance_id AND deleted_at IS NULL
        ORDER BY email_key
        LIMIT :walk_rows
    )
    UNION ALL
    (
        SELECT id, search_text
        FROM users
        WHERE :way = '-email' AND instance_id = :instance_id AND deleted_at IS NULL
        ORDER BY email_key DESC
        LIMIT :walk_rows
    )
    UNION ALL
    (
        SELECT id, search_text
        FROM users
        WHERE :way = 'fullname' AND instance_id = :instance_id AND deleted_at IS NULL
        ORDER BY
            lower(full_name),
            CASE :tie::text WHEN 'id' THEN (
                SELECT a.id FROM accounts AS a
                WHERE a.instance_id = :instance_id AND a.user_id = users.id AND a.deleted_at IS NULL
            ) END,
            CASE :tie::text WHEN '-id' THEN (
                SELECT a.id FROM accounts AS a
                WHERE a.instance_id = :instance_id AND a.user_id = users.id AND a.deleted_at IS NULL
            ) END DESC NULLS LAST,
            CASE :tie::text WHEN 'email' THEN email_key END,
            CASE :tie::text WHEN '-email' THEN email_key END DESC,
            CASE :tie::text WHEN '-user' THEN id END DESC,
            id
        LIMIT :walk_rows
    )
    UNION ALL
    (
        SELECT id, search_text
        FROM users
        WHERE :way = '-fullname' AND instance_id = :instance_id AND deleted_at IS NULL
        ORDER BY
            lower(full_name) DESC,
            CASE :tie::text WHEN 'id' THEN (
                SELECT a.id FROM accounts AS a
                WHERE a.instance_id = :instance_id AND a.user_id = users.id AND a.deleted_at IS NULL
            ) END,
            CASE :tie::text WHEN '-id' THEN (
                SELECT a.id FROM accounts AS a
                WHERE a.instance_id = :instance_id AND a.user_id = users.id AND a.deleted_at IS NULL
            ) END DESC NULLS LAST,
            CASE :tie::text WHEN 'email' THEN email_key END,
            CASE :tie::text WHEN '-email' THEN email_key END DESC,
            CASE :tie::text WHEN '-user' THEN id END DESC,
            id
        LIMIT :walk_rows
    )
),

matching AS MATERIALIZED (
    SELECT id
    FROM with_account
    UNION ALL
    (
        SELECT id
        FROM everybody
        WHERE
            (SELECT accounts_through FROM looked) AND strpos(search_text, lower(:searched)) > 0
            AND (
                :accounts_first = '' OR (
                    SELECT a.id
                    FROM accounts AS a
                    WHERE a.instance_id = :instance_id AND a.user_id = everybody.id AND a.deleted_at IS NULL
                ) IS NULL
            )
        LIMIT (SELECT enough FROM looked)
    )
    UNION ALL
    SELECT id
    FROM users
    WHERE
        :way = 'trigrams' AND instance_id = :instance_id AND deleted_at IS NULL
        AND search_text LIKE lower(:pattern)
    UNION ALL
    SELECT id
    FROM users
    WHERE
        :way = 'bigrams' AND instance_id = :instance_id AND deleted_at IS NULL
        AND bigrams(search_text) @@ bigrams_of(lower(:searched)) AND strpos(search_text, lower(:searched)) > 0
),

chosen AS (
    SELECT id
    FROM matching
    UNION
    SELECT user_id
    FROM accounts
    WHERE instance_id = :instance_id AND id = :account_id AND deleted_at IS NULL
)

SELECT
    a.id, u.id AS "user", u.email, u.full_name AS fullname, NULL::bigint AS "positionId",
    count(*) OVER () AS total, (SELECT through FROM looked) AS through
FROM chosen
CROSS JOIN LATERAL (
    SELECT id, email, email_key, full_name
    FROM users
    WHERE instance_id = :instance_id AND id = chosen.id AND deleted_at IS NULL
    OFFSET 0
) AS u
LEFT JOIN LATERAL (
    SELECT id
    FROM accounts
    WHERE instance_id = :instance_id AND user_id = chosen.id AND deleted_at IS NULL
    OFFSET 0
) AS a ON true
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

-- name: search_downline(instance_id, tree_id, path, searched, pattern, way, tie, walk_rows, wanted, account_id, sort_1, sort_2, sort_3, sort_4, row_offset, row_limit)
-- The same among those who stand beneath a place. all looks through every one of them, for a place with few;
-- id, -id, user and -user walk through the tree, the other ways go through everybody as above.
WITH beneath AS (
    SELECT id, account_id, user_id
    FROM positions
    WHERE
        :way = 'all' AND instance_id = :instance_id
        AND subpath(path, 0, 100) >= subpath(:path::text::ltree, 0, 100)
        -- A label is a number, and nothing but what is beneath it comes before the same with a zero.
        AND subpath(path, 0, 100) < text2ltree(ltree2text(subpath(:path::text::ltree, 0, 100)) || '0')
        AND path <@ :path::text::ltree AND nlevel(path) > nlevel(:path::text::ltree)
),

tree AS (
    (
        SELECT id, account_id, user_id, path
        FROM positions
        WHERE :way = 'id' AND instance_id = :instance_id AND tree_id = :tree_id
        ORDER BY account_id
        LIMIT :walk_rows
    )
    UNION ALL
    (
        SELECT id, account_id, user_id, path
        FROM positions
        WHERE :way = '-id' AND instance_id = :instance_id AND tree_id = :tree_id
        ORDER BY account_id DESC
        LIMIT :walk_rows
    )
    UNION ALL
    (
        SELECT id, account_id, user_id, path
        FROM positions
        WHERE :way = 'user' AND instance_id = :instance_id AND tree_id = :tree_id
        ORDER BY user_id
        LIMIT :walk_rows
    )
    UNION ALL
    (
        SELECT id, account_id, user_id, path
        FROM positions
        WHERE :way = '-user' AND instance_id = :instance_id AND tree_id = :tree_id AND user_id IS NOT NULL
        ORDER BY user_id DESC
        LIMIT :walk_rows
    )
),

everybody AS (
    (
        SELECT id, search_text
        FROM users
        WHERE :way = 'email' AND instance_id = :instance_id AND deleted_at IS NULL
        ORDER BY email_key
        LIMIT :walk_rows
    )
    UNION ALL
    (
        SELECT id, search_text
        FROM users
        WHERE :way = '-email' AND instance_id = :instance_id AND deleted_at IS NULL
        ORDER BY email_key DESC
        LIMIT :walk_rows
    )
    UNION ALL
    (
        SELECT id, search_text
        FROM users
        WHERE :way = 'fullname' AND instance_id = :instance_id AND deleted_at IS NULL
        ORDER BY
            lower(full_name),
            CASE :tie::text WHEN 'id' THEN (
                SELECT a.id FROM accounts AS a
                WHERE a.instance_id = :instance_id AND a.user_id = users.id AND a.deleted_at IS NULL
            ) END,
            CASE :tie::text WHEN '-id' THEN (
                SELECT a.id FROM accounts AS a
                WHERE a.instance_id = :instance_id AND a.user_id = users.id AND a.deleted_at IS NULL
            ) END DESC NULLS LAST,
            CASE :tie::text WHEN 'email' THEN email_key END,
            CASE :tie::text WHEN '-email' THEN email_key END DESC,
            CASE :tie::text WHEN '-user' THEN id END DESC,
            id
        LIMIT :walk_rows
    )
    UNION ALL
    (
        SELECT id, search_text
        FROM users
        WHERE :way = '-fullname' AND instance_id = :instance_id AND deleted_at IS NULL
        ORDER BY
            lower(full_name) DESC,
            CASE :tie::text WHEN 'id' THEN (
                SELECT a.id FROM accounts AS a
                WHERE a.instance_id = :instance_id AND a.user_id = users.id AND a.deleted_at IS NULL
            ) END,
            CASE :tie::text WHEN '-id' THEN (
                SELECT a.id FROM accounts AS a
                WHERE a.instance_id = :instance_id AND a.user_id = users.id AND a.deleted_at IS NULL
            ) END DESC NULLS LAST,
            CASE :tie::text WHEN 'email' THEN email_key END,
            CASE :tie::text WHEN '-email' THEN email_key END DESC,
            CASE :tie::text WHEN '-user' THEN id END DESC,
            id
        LIMIT :walk_rows
    )
),

named AS (
    SELECT id
    FROM users
    WHERE
        :way = 'trigrams' AND instance_id = :instance_id AND deleted_at IS NULL
        AND search_text LIKE lower(:pattern)
    UNION ALL
    SELECT id
    FROM users
    WHERE
        :way = 'bigrams' AND instance_id = :instance_id AND deleted_at IS NULL
        AND bigrams(search_text) @@ bigrams_of(lower(:searched)) AND strpos(search_text, lower(:searched)) > 0
),

matching AS MATERIALIZED (
    (
        SELECT beneath.id, beneath.account_id, beneath.user_id
        FROM beneath
        CROSS JOIN LATERAL (
            SELECT search_text
            FROM users
            WHERE instance_id = :instance_id AND id = beneath.user_id AND deleted_at IS NULL
            OFFSET 0
        ) AS found
        WHERE strpos(found.search_text, lower(:searched)) > 0 OR beneath.account_id = :account_id
    )
    UNION ALL
    (
        SELECT tree.id, tree.account_id, tree.user_id
        FROM tree
        CROSS JOIN LATERAL (
            SELECT search_text
            FROM users
            WHERE
                tree.path <@ :path::text::ltree AND nlevel(tree.path) > nlevel(:path::text::ltree)
                AND instance_id = :instance_id AND id = tree.user_id AND deleted_at IS NULL
            OFFSET 0
        ) AS found
        WHERE strpos(found.search_text, lower(:searched)) > 0
        LIMIT :wanted
    )
    UNION ALL
    (
        SELECT p.id, p.account_id, p.user_id
        FROM everybody
        CROSS JOIN LATERAL (
            SELECT id, account_id, user_id
            FROM positions
            WHERE
                strpos(everybody.search_text, lower(:searched)) > 0
                AND instance_id = :instance_id AND tree_id = :tree_id AND user_id = everybody.id
                AND path <@ :path::text::ltree AND nlevel(path) > nlevel(:path::text::ltree)
            OFFSET 0
        ) AS p
        LIMIT :wanted
    )
    UNION ALL
    (
        SELECT p.id, p.account_id, p.user_id
        FROM named
        CROSS JOIN LATERAL (
            SELECT id, account_id, user_id
            FROM positions
            WHERE
                instance_id = :instance_id AND tree_id = :tree_id AND user_id = named.id
                AND path <@ :path::text::ltree AND nlevel(path) > nlevel(:path::text::ltree)
            OFFSET 0
        ) AS p
    )
),

chosen AS (
    SELECT id, account_id, user_id
    FROM matching
    UNION
    SELECT id, account_id, user_id
    FROM positions
    WHERE
        instance_id = :instance_id AND tree_id = :tree_id AND account_id = :account_id
        AND path <@ :path::text::ltree AND nlevel(path) > nlevel(:path::text::ltree)
)

SELECT
    chosen.account_id AS id, u.id AS "user", u.email, u.full_name AS fullname,
    chosen.id AS "positionId", count(*) OVER () AS total, false AS through
FROM chosen
CROSS JOIN LATERAL (
    SELECT id, email, email_key, full_name
    FROM users
    WHERE instance_id = :instance_id AND id = chosen.user_id AND deleted_at IS NULL
    OFFSET 0
) AS u
ORDER BY
    CASE :sort_1::text WHEN 'id' THEN chosen.account_id WHEN 'user' THEN u.id END,
    CASE :sort_1::text WHEN '-id' THEN chosen.account_id WHEN '-user' THEN u.id END DESC NULLS LAST,
    CASE :sort_1::text WHEN 'email' THEN u.email_key WHEN 'fullname' THEN lower(u.full_name) END,
    CASE :sort_1::text WHEN '-email' THEN u.email_key WHEN '-fullname' THEN lower(u.full_name) END DESC,
    CASE :sort_2::text WHEN 'id' THEN chosen.account_id WHEN 'user' THEN u.id END,
    CASE :sort_2::text WHEN '-id' THEN chosen.account_id WHEN '-user' THEN u.id END DESC NULLS LAST,
    CASE :sort_2::text WHEN 'email' THEN u.email_key WHEN 'fullname' THEN lower(u.full_name) END,
    CASE :sort_2::text WHEN '-email' THEN u.email_key WHEN '-fullname' THEN lower(u.full_name) END DESC,
    CASE :sort_3::text WHEN 'id' THEN chosen.account_id WHEN 'user' THEN u.id END,
    CASE :sort_3::text WHEN '-id' THEN chosen.account_id WHEN '-user' THEN u.id END DESC NULLS LAST,
    CASE :sort_3::text WHEN 'email' THEN u.email_key WHEN 'fullname' THEN lower(u.full_name) END,
    CASE :sort_3::text WHEN '-email' THEN u.email_key WHEN '-fullname' THEN lower(u.full_name) END DESC,
    CASE :sort_4::text WHEN 'id' THEN chosen.account_id WHEN 'user' THEN u.id END,
    CASE :sort_4::text WHEN '-id' THEN chosen.account_id WHEN '-user' THEN u.id END DESC NULLS LAST,
    CASE :sort_4::text WHEN 'email' THEN u.email_key WHEN 'fullname' THEN lower(u.full_name) END,
    CASE :sort_4::text WHEN '-email' THEN u.email_key WHEN '-fullname' THEN lower(u.full_name) END DESC,
    u.id
OFFSET :row_offset
LIMIT :row_limit;

-- name: count_beneath(instance_id, path, positions, most, lots)^
-- How many stand at and beneath a place, counted no further than asked; and how many of so many places, drawn
-- by lot from all that the instance ever had, are among them.
SELECT
    (
        SELECT count(*)
        FROM (
            SELECT id
            FROM positions
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
            SELECT path
            FROM positions
            WHERE instance_id = :instance_id AND id = 1 + lot * 2654435761 % greatest(:positions::bigint, 1)
            OFFSET 0
        ) AS taken
        WHERE taken.path <@ :path::text::ltree
    ) AS sampled;
