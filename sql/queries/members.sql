-- name: get_member(instance_id, user_id)^
-- A living user as the member platform shows it, by id.
SELECT
    u.id, u.email, u.login, u.language, u.is_active, u.confirmed_at IS NOT NULL AS is_confirmed,
    u.fields - array(
        SELECT alias
        FROM profile_fields
        WHERE instance_id = :instance_id AND removed_at IS NOT NULL
    ) AS fields,
    u.avatar, u.full_name, a.id AS account_id, a.title AS account_title
FROM users AS u
LEFT JOIN accounts AS a ON a.instance_id = :instance_id AND a.user_id = u.id AND a.deleted_at IS NULL
WHERE u.instance_id = :instance_id AND u.id = :user_id AND u.deleted_at IS NULL;

-- name: get_member_by_login(instance_id, key)^
-- The same by login or e-mail.
SELECT
    u.id, u.email, u.login, u.language, u.is_active, u.confirmed_at IS NOT NULL AS is_confirmed,
    u.fields - array(
        SELECT alias
        FROM profile_fields
        WHERE instance_id = :instance_id AND removed_at IS NOT NULL
    ) AS fields,
    u.avatar, u.full_name, a.id AS account_id, a.title AS account_title
FROM users AS u
LEFT JOIN accounts AS a ON a.instance_id = :instance_id AND a.user_id = u.id AND a.deleted_at IS NULL
WHERE
    u.instance_id = :instance_id AND u.deleted_at IS NULL
    AND u.id = coalesce(
        (SELECT l.user_id FROM logins AS l WHERE l.instance_id = :instance_id AND l.login_key = :key),
        (SELECT named.id FROM users AS named WHERE named.instance_id = :instance_id AND named.email_key = :key)
    );

-- name: set_language(instance_id, user_id, language)^
-- The language of a living user.
WITH held AS (
    SELECT u.id, user_state(u) AS before
    FROM users AS u
    WHERE u.instance_id = :instance_id AND u.id = :user_id AND u.deleted_at IS NULL
    FOR NO KEY UPDATE
)

UPDATE users
SET language = :language, updated_at = now()
FROM held
WHERE users.instance_id = :instance_id AND users.id = held.id
RETURNING users.id, held.before, user_state(users) AS after;

-- name: set_password_by_id(instance_id, user_id, password_hash)^
-- As set_password, by id.
WITH target AS (
    SELECT id, is_admin
    FROM users
    WHERE instance_id = :instance_id AND id = :user_id AND deleted_at IS NULL
    FOR NO KEY UPDATE
),

stored AS (
    INSERT INTO credentials (instance_id, user_id, password_hash)
    SELECT :instance_id, id, :password_hash
    FROM target
    ON CONFLICT (instance_id, user_id) DO UPDATE
    SET password_hash = excluded.password_hash, changed_at = now()
)

SELECT
    id, is_admin,
    EXISTS (
        SELECT FROM credentials AS c
        WHERE c.instance_id = :instance_id AND c.user_id = target.id
    ) AS had_password
FROM target;

-- name: delete_member(instance_id, user_id, with_account)^
-- As delete_user, by id and, if asked, with the account, whose place stays for those beneath it.
WITH gone AS (
    UPDATE users
    SET deleted_at = now(), updated_at = now()
    WHERE instance_id = :instance_id AND id = :user_id AND deleted_at IS NULL
    RETURNING id, user_state(users) AS state
),

counted AS (
    UPDATE instance_counters
    SET living_users = living_users - 1
    WHERE instance_id = :instance_id AND EXISTS (SELECT FROM gone)
),

closed AS (
    UPDATE accounts
    SET deleted_at = now()
    FROM gone
    WHERE accounts.instance_id = :instance_id AND accounts.user_id = gone.id AND :with_account::boolean
)

SELECT id, state
FROM gone;

-- name: merge_fields(instance_id, user_id, fields)^
-- New values of profile fields; a null takes a field away. The name that is shown follows.
WITH held AS (
    SELECT u.id, user_state(u) AS before
    FROM users AS u
    WHERE u.instance_id = :instance_id AND u.id = :user_id AND u.deleted_at IS NULL
    FOR NO KEY UPDATE
)

UPDATE users
SET
    fields = jsonb_strip_nulls(fields || :fields),
    display_name = left(
        coalesce(
            nullif(
                btrim(
                    coalesce((fields || :fields) ->> 'firstname', '') || ' '
                    || coalesce((fields || :fields) ->> 'lastname', '')
                ),
                ''
            ),
            display_name
        ),
        200
    ),
    updated_at = now()
FROM held
WHERE users.instance_id = :instance_id AND users.id = held.id
RETURNING users.id, held.before, user_state(users) AS after;

-- name: list_fields(instance_id)
-- An instance's own profile fields.
SELECT alias, title, type, mandatory, choices
FROM profile_fields
WHERE instance_id = :instance_id AND removed_at IS NULL
ORDER BY alias;

-- name: define_field(instance_id, alias, title, type, mandatory, choices)$
-- A new field, or another form of one; what it was before.
WITH held AS (
    SELECT jsonb_build_object('title', title, 'type', type, 'mandatory', mandatory, 'choices', choices) AS before
    FROM profile_fields
    WHERE instance_id = :instance_id AND alias = :alias AND removed_at IS NULL
    FOR NO KEY UPDATE
),

-- As the insertion reads it, it holds the old form before it writes.
defined AS (
    INSERT INTO profile_fields (instance_id, alias, title, type, mandatory, choices)
    SELECT :instance_id, :alias, :title, :type, :mandatory, :choices
    FROM (SELECT count(*) FROM held) AS read_first
    ON CONFLICT (instance_id, alias) DO UPDATE
    SET
        title = excluded.title, type = excluded.type, mandatory = excluded.mandatory, choices = excluded.choices,
        removed_at = NULL
    RETURNING alias
)

SELECT held.before
FROM defined
LEFT JOIN held ON true;

-- name: remove_field(instance_id, alias)$
-- The values that users have of it stay where they are, unseen.
WITH removed AS (
    UPDATE profile_fields
    SET removed_at = now()
    WHERE instance_id = :instance_id AND alias = :alias AND removed_at IS NULL
    RETURNING title, type, mandatory, choices
)

SELECT jsonb_build_object('title', title, 'type', type, 'mandatory', mandatory, 'choices', choices)
FROM removed;

-- name: create_document(instance_id, document_id, entity, action, user_id, fields, asked_by)^
-- A note of what was asked of the queue. Holding the user puts those of one user in an order. No row without the user.
WITH held AS (
    SELECT id, is_admin
    FROM users
    WHERE instance_id = :instance_id AND id = :user_id AND deleted_at IS NULL
    FOR NO KEY UPDATE
)

INSERT INTO documents (instance_id, id, entity, action, user_id, fields, asked_by, created_at)
SELECT :instance_id, :document_id, :entity, :action, held.id, :fields, :asked_by, statement_timestamp()
FROM held
RETURNING (SELECT held.is_admin FROM held) AS is_admin;

-- name: hold_user(instance_id, user_id)^
-- Keeps others from changing a user until the transaction ends.
SELECT id, is_admin
FROM users
WHERE instance_id = :instance_id AND id = :user_id
FOR NO KEY UPDATE;

-- name: list_unfinished(instance_id, user_id)
-- What was asked about a user and is not done, in the order in which it was asked.
SELECT id, fields, asked_by
FROM documents
WHERE instance_id = :instance_id AND user_id = :user_id AND result IS NULL
ORDER BY created_at, id;

-- name: finish_document(instance_id, document_id, result)!
-- What came of it.
UPDATE documents
SET result = :result
WHERE instance_id = :instance_id AND id = :document_id;

-- name: get_document(instance_id, document_id)^
-- A document with its result, if there is one yet; a deleted user is not shown in it.
SELECT
    d.id::text AS id, d.entity, d.action,
    CASE WHEN u.deleted_at IS NULL THEN d.result ELSE jsonb_set(d.result, '{member}', 'null') END AS result
FROM documents AS d
INNER JOIN users AS u ON u.instance_id = :instance_id AND u.id = d.user_id
WHERE d.instance_id = :instance_id AND d.id = :document_id;
