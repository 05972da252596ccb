-- name: get_login_delay(instance_id, subjects)^
-- Seconds until another login may be tried; null where it may be now.
SELECT ceil(extract(EPOCH FROM max(delayed_until) - now()))::integer AS seconds
FROM login_failures
WHERE instance_id = :instance_id AND subject = any(:subjects::bytea[]) AND delayed_until > now();

-- name: note_failed_login(instance_id, subject, allowed, forgiven_every, longest)^
-- True once it is counted; nothing where others failed meanwhile, so that a delay has begun, or were the first to fail.
-- Each failure is forgiven after so many seconds, one after the other. From the last allowed one on there is a
-- delay, of a second at first, which doubles with each, up to the longest.
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
-- After a right password: the failures that it forgives are forgotten, unless others failed meanwhile, so that a delay
-- has begun. Then its seconds.
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
-- Whether the instance may have one more living user.
SELECT max_users IS NULL OR living_users < max_users AS has_seat FROM instance_counters
WHERE instance_id = :instance_id;
