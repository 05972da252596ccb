-- The id of a user, deleted or not, by id, by e-mail or login, or by external id.
SELECT
    coalesce(
        :user_id::bigint,
        (SELECT l.user_id FROM logins AS l WHERE l.instance_id = :instance_id AND l.login_key = :key),
        (SELECT u.id FROM users AS u WHERE u.instance_id = :instance_id AND u.email_key = :key),
        (SELECT u.id FROM users AS u WHERE u.instance_id = :instance_id AND u.external_id = :external_id)
    ) AS id;
