-- name: page_scim_users(instance_id, after, row_offset, row_limit)
-- A page of the users that are not deleted, by id, with the data of their SCIM resources; and the number of all.
SELECT
    counters.living_users AS total, shown.*
FROM instance_counters AS counters
LEFT JOIN LATERAL (
    SELECT *
    FROM scim_users
    WHERE
        id = any(
            array(
                SELECT u.id
                FROM users AS u
                WHERE u.instance_id = :instance_id AND u.deleted_at IS NULL AND u.id > :after
                ORDER BY u.id
                OFFSET :row_offset
                LIMIT :row_limit
            )
        )
) AS shown ON true
WHERE counters.instance_id = :instance_id
ORDER BY shown.id;

-- name: find_scim_users(instance_id, key, external_id)
-- Users that are not deleted, by the key of an e-mail or login, or by externalId; null finds none.
SELECT *
FROM scim_users
WHERE
    id = any(
        array(
            SELECT u.id FROM users AS u WHERE u.instance_id = :instance_id AND u.email_key = :key::text
            UNION ALL
            SELECT l.user_id FROM logins AS l WHERE l.instance_id = :instance_id AND l.login_key = :key::text
            UNION ALL
            SELECT u.id FROM users AS u WHERE u.instance_id = :instance_id AND u.external_id = :external_id::text
        )
    )
ORDER BY id;

-- name: count_for_scim(instance_id)^
-- The numbers of groups, and of users that are not deleted.
SELECT living_users AS users, (SELECT count(*) FROM groups WHERE instance_id = :instance_id) AS groups
FROM instance_counters
WHERE instance_id = :instance_id;

-- name: search_scim_users(instance_id, predicate, named, address, base, all_rows, ids, keys, external_ids, prefixes, substrings, short_substrings, members, suspended, most, sort, descending, row_offset, row_limit)
-- A page of the users that match a filter and are not deleted, with the data of their SCIM resources; the number of
-- matches; and the number of candidates, at most `most` + 1: then there are too many, and no match is returned. The arrays
-- are the look-ups that find candidates, each by its own index (directory/scim/filters.Lookups). predicate: the filter as a
-- jsonpath on documents. sort: the jsonpath to sort by.
WITH candidates AS MATERIALIZED (
    SELECT DISTINCT found.id
    FROM (
        (
            SELECT u.id FROM users AS u
            WHERE :all_rows::boolean AND u.instance_id = :instance_id AND u.deleted_at IS NULL
            LIMIT :most + 1
        )
        UNION ALL
        SELECT unnest(:ids::bigint [])
        UNION ALL
        SELECT u.id FROM users AS u WHERE u.instance_id = :instance_id AND u.email_key = any(:keys::text [])
        UNION ALL
        SELECT l.user_id FROM logins AS l WHERE l.instance_id = :instance_id AND l.login_key = any(:keys::text [])
        UNION ALL
        (
            SELECT u.id
            FROM unnest(:keys::text []) AS other (key)
            INNER JOIN users AS u
                ON
                    u.instance_id = :instance_id AND u.attributes <> '{}' AND u.deleted_at IS NULL
                    AND u.attributes @> jsonb_build_object('emailKeys', jsonb_build_array(other.key))
            LIMIT :most + 1
        )
        UNION ALL
        SELECT u.id FROM users AS u
        WHERE u.instance_id = :instance_id AND u.external_id = any(:external_ids::text [])
        UNION ALL
        (
            SELECT u.id
            FROM unnest(:prefixes::text []) AS prefix (text)
            INNER JOIN users AS u
                ON
                    u.instance_id = :instance_id AND u.deleted_at IS NULL
                    AND u.email_key >= prefix.text AND u.email_key < prefix.text || chr(1114111)
            LIMIT :most + 1
        )
        UNION ALL
        (
            SELECT l.user_id
            FROM unnest(:prefixes::text []) AS prefix (text)
            INNER JOIN logins AS l
                ON
                    l.instance_id = :instance_id
                    AND l.login_key >= prefix.text AND l.login_key < prefix.text || chr(1114111)
            LIMIT :most + 1
        )
        UNION ALL
        (
            SELECT u.id
            FROM unnest(:substrings::text []) AS part (pattern)
            CROSS JOIN LATERAL (
                SELECT id FROM users
                WHERE instance_id = :instance_id AND deleted_at IS NULL AND search_text LIKE part.pattern
                OFFSET 0
            ) AS u
            LIMIT :most + 1
        )
        UNION ALL
        (
            SELECT u.id
            FROM unnest(:substrings::text []) AS part (pattern)
            CROSS JOIN LATERAL (
                SELECT id FROM users
                WHERE
                    instance_id = :instance_id AND (display_name <> full_name OR login IS NOT NULL OR attributes ?| '{name,emailKeys}')
                    AND deleted_at IS NULL
                    AND (lower(display_name || E'\n' || coalesce(login, '') || E'\n' || coalesce(attributes #>> '{name,formatted}', '')) || E'\n' || coalesce(attributes ->> 'emailKeys', '')) LIKE part.pattern
                OFFSET 0
            ) AS u
            LIMIT :most + 1
        )
        UNION ALL
        (
            SELECT u.id
            FROM unnest(:short_substrings::text []) AS part (text)
            CROSS JOIN LATERAL (
                SELECT id FROM users
                WHERE
                    instance_id = :instance_id AND deleted_at IS NULL
                    AND bigrams(search_text) @@ bigrams_of(part.text)
                OFFSET 0
            ) AS u
            LIMIT :most + 1
        )
        UNION ALL
        (
            SELECT u.id
            FROM unnest(:short_substrings::text []) AS part (text)
            CROSS JOIN LATERAL (
                SELECT id FROM users
                WHERE
                    instance_id = :instance_id AND (display_name <> full_name OR login IS NOT NULL OR attributes ?| '{name,emailKeys}')
                    AND deleted_at IS NULL
                    AND bigrams(lower(display_name || E'\n' || coalesce(login, '') || E'\n' || coalesce(attributes #>> '{name,formatted}', '')) || E'\n' || coalesce(attributes ->> 'emailKeys', ''))
                    @@ bigrams_of(part.text)
                OFFSET 0
            ) AS u
            LIMIT :most + 1
        )
        UNION ALL
        (
            SELECT gm.user_id FROM group_members AS gm
            WHERE gm.instance_id = :instance_id AND gm.group_id = any(:members::bigint [])
            LIMIT :most + 1
        )
        UNION ALL
        (
            SELECT u.id FROM users AS u
            WHERE 0 = any(:members::bigint []) AND u.instance_id = :instance_id AND u.is_admin AND u.deleted_at IS NULL
            LIMIT :most + 1
        )
        UNION ALL
        (
            SELECT u.id FROM users AS u
            WHERE
                :suspended::boolean AND u.instance_id = :instance_id AND NOT u.is_active AND u.deleted_at IS NULL
            LIMIT :most + 1
        )
    ) AS found
    LIMIT :most + 1
),

matching AS MATERIALIZED (
    SELECT documented.id, jsonb_path_query_first(documented.document, :sort::text::jsonpath) AS sorted_by
    FROM candidates
    CROSS JOIN LATERAL (
        SELECT documents.id, documents.document
        FROM scim_user_documents AS documents
        WHERE documents.id = candidates.id
        OFFSET 0
    ) AS documented
    WHERE (SELECT count(*) FROM candidates) <= :most AND documented.document @@ :predicate::text::jsonpath
),

page AS (
    SELECT
        id,
        row_number() OVER (
            ORDER BY
                CASE WHEN NOT :descending::boolean THEN sorted_by END,
                CASE WHEN :descending::boolean THEN sorted_by END DESC, id
        ) AS seq
    FROM matching
    ORDER BY seq
    OFFSET :row_offset
    LIMIT :row_limit
)

SELECT
    (SELECT count(*) FROM candidates) AS candidate_count, (SELECT count(*) FROM matching) AS total, shown.*
FROM (SELECT 1) AS one (one)
LEFT JOIN page ON true
LEFT JOIN LATERAL (
    SELECT * FROM scim_users WHERE scim_users.id = page.id
) AS shown ON true
ORDER BY page.seq;

-- name: page_scim_groups(instance_id, after, row_offset, row_limit)
-- The ids of a page of groups, sorted, including Admins (id 0); and the number of all groups.
SELECT (SELECT count(*) + 1 FROM groups WHERE instance_id = :instance_id) AS total, listed.id
FROM (SELECT 1) AS one (one)
LEFT JOIN LATERAL (
    SELECT listed.id
    FROM (
        SELECT 0::bigint AS id WHERE :after::bigint < 0
        UNION ALL
        (
            SELECT g.id FROM groups AS g
            WHERE g.instance_id = :instance_id AND g.id > :after::bigint
            ORDER BY g.id
            LIMIT :row_offset::bigint + :row_limit::bigint
        )
    ) AS listed
    ORDER BY listed.id
    OFFSET :row_offset::bigint
    LIMIT :row_limit::bigint
) AS listed ON true
ORDER BY listed.id;

-- name: search_scim_groups(instance_id, predicate, named, base, all_rows, ids, keys, external_ids, members, most, with_members, most_members, sort, descending, row_offset, row_limit)
-- The same for groups; members: ids of users. The page ends with the group that makes its members exceed most_members.
WITH candidates AS MATERIALIZED (
    SELECT DISTINCT found.id
    FROM (
        (
            SELECT g.id FROM groups AS g
            WHERE :all_rows::boolean AND g.instance_id = :instance_id
            LIMIT :most + 1
        )
        UNION ALL
        SELECT 0 AS id WHERE :all_rows::boolean OR 'admins' = any(:keys::text [])
        UNION ALL
        SELECT unnest(:ids::bigint [])
        UNION ALL
        SELECT g.id FROM groups AS g WHERE g.instance_id = :instance_id AND g.name_key = any(:keys::text [])
        UNION ALL
        SELECT g.id FROM groups AS g
        WHERE g.instance_id = :instance_id AND g.external_id = any(:external_ids::text [])
        UNION ALL
        SELECT gm.group_id FROM group_members AS gm
        WHERE gm.instance_id = :instance_id AND gm.user_id = any(:members::bigint [])
        UNION ALL
        SELECT 0 AS id WHERE cardinality(:members::bigint []) > 0
    ) AS found
    LIMIT :most + 2
),

matching AS MATERIALIZED (
    SELECT documented.id, jsonb_path_query_first(documented.document, :sort::text::jsonpath) AS sorted_by
    FROM candidates
    CROSS JOIN LATERAL (
        SELECT documents.id, documents.document
        FROM scim_group_documents AS documents
        WHERE documents.id = candidates.id
        OFFSET 0
    ) AS documented
    WHERE (SELECT count(*) FROM candidates) <= :most + 1 AND documented.document @@ :predicate::text::jsonpath
),

page AS (
    SELECT
        id,
        row_number() OVER (
            ORDER BY
                CASE WHEN NOT :descending::boolean THEN sorted_by END,
                CASE WHEN :descending::boolean THEN sorted_by END DESC, id
        ) AS seq
    FROM matching
    ORDER BY seq
    OFFSET :row_offset
    LIMIT :row_limit
),

sized AS (
    SELECT page.id, page.seq, sum(members.total) OVER (ORDER BY page.seq) - members.total AS before
    FROM page
    CROSS JOIN LATERAL (
        SELECT count(*) AS total
        FROM (
            SELECT
            FROM group_members AS gm
            WHERE :with_members::boolean AND gm.instance_id = :instance_id AND gm.group_id = page.id
            UNION ALL
            SELECT
            FROM users AS u
            WHERE
                :with_members::boolean AND page.id = 0 AND u.instance_id = :instance_id AND u.is_admin
                AND u.deleted_at IS NULL
        ) AS listed
    ) AS members
)

SELECT
    (SELECT count(*) FROM candidates) - 1 AS candidate_count, (SELECT count(*) FROM matching) AS total,
    shown.id, shown.name, shown.external_id, shown.created_at, shown.updated_at, shown.admins,
    CASE WHEN :with_members::boolean THEN shown.members END AS members
FROM (SELECT 1) AS one (one)
LEFT JOIN sized AS page ON page.before <= :most_members
LEFT JOIN LATERAL (
    SELECT * FROM scim_groups WHERE scim_groups.id = page.id
) AS shown ON true
ORDER BY page.seq;
