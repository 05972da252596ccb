-- name: get_login_delay(instance_id, subjects)^
-- Seconds until the next login is allowed; null if it is allowed now.
SELECT ceil(extract(EPOCH FROM max(delayed_until) - now()))::integer AS seconds
FROM login_failures
WHERE instance_id = :instance_id AND subject = any(:subjects::bytea[]) AND delayed_until > now();

-- name: note_failed_login(instance_id, subject, allowed, forgiven_every, longest)^
-- Counts a failed login. No row if concurrent failures began a delay, or inserted the first row. One failure is
-- forgiven every forgiven_every seconds. From the failure number `allowed` on there is a delay: one second, doubled
-- by each further failure, at most `longest`.
WITH known AS (
    SELECT forgiven_at, delayed_until FROM login_failures
    WHERE instance_id = :instance_id AND subject = :subject
    FOR UPDATE
),

counted AS (
    SELECT
        greatest(forgiven_at, now()) + make_interval(secs => :forgiven_every::integer) AS forgiven_at,
        1 + ceil(greatest(0, extract(EPOCH FROM forgiven_at - now())) / :forgiven_every::integer) AS failures
    FROM known
    WHERE delayed_until <= now()
),

later AS (
    SELECT
        forgiven_at,
        CASE
            WHEN failures < :allowed::integer THEN '-infinity'
            ELSE now() + make_interval(
                secs => least(:longest::integer, power(2, least(20, failures - :allowed::integer)))
            )
        END AS delayed_until
    FROM counted
),

again AS (
    UPDATE login_failures
    SET forgiven_at = later.forgiven_at, delayed_until = later.delayed_until
    FROM later
    WHERE login_failures.instance_id = :instance_id AND login_failures.subject = :subject
    RETURNING login_failures.subject
),

first AS (
    INSERT INTO login_failures (instance_id, subject, forgiven_at, delayed_until)
    SELECT :instance_id, :subject, now() + make_interval(secs => :forgiven_every::integer), '-infinity'
    WHERE NOT EXISTS (SELECT FROM known)
    ON CONFLICT (instance_id, subject) DO NOTHING
    RETURNING subject
)

SELECT true AS counted FROM again
UNION ALL
SELECT true AS counted FROM first;

-- name: forget_failed_logins(instance_id, forgiven, subjects)^
-- After a correct password: deletes the failures that it forgives, and returns the seconds of the delay that
-- concurrent failures began, if they did.
WITH delay AS (
    SELECT ceil(extract(EPOCH FROM max(delayed_until) - now()))::integer AS seconds
    FROM login_failures
    WHERE instance_id = :instance_id AND subject = any(:subjects::bytea[]) AND delayed_until > now()
),

forgotten AS (
    DELETE FROM login_failures
    WHERE instance_id = :instance_id AND subject = any(:forgiven::bytea[]) AND delayed_until <= now()
)

SELECT seconds FROM delay;

-- name: has_seat(instance_id)$
-- Whether the instance may have one more user.
SELECT max_users IS NULL OR living_users < max_users AS has_seat FROM instance_counters
WHERE instance_id = :instance_id;
