-- name: create_plan(instance_id, type, name, details, duration, options)^
-- A new plan.
WITH counter AS (
    UPDATE instance_counters
    SET plans = plans + 1
    WHERE instance_id = :instance_id
    RETURNING plans AS id
)

INSERT INTO plans (instance_id, id, type, name, details, duration, options)
SELECT :instance_id, counter.id, :type, :name, :details, :duration, :options
FROM counter
RETURNING
    id, type, name, details, duration, options, floor(extract(EPOCH FROM created_at))::bigint AS "createdAt",
    floor(extract(EPOCH FROM updated_at))::bigint AS "updatedAt";

-- name: get_plan(instance_id, plan_id)^
-- One plan.
SELECT
    id, type, name, details, duration, options, floor(extract(EPOCH FROM created_at))::bigint AS "createdAt",
    floor(extract(EPOCH FROM updated_at))::bigint AS "updatedAt"
FROM plans
WHERE instance_id = :instance_id AND id = :plan_id;

-- name: hold_plan(instance_id, plan_id)^
-- One plan, locked until the transaction ends.
SELECT type, name, details, duration, options FROM plans
WHERE instance_id = :instance_id AND id = :plan_id
FOR NO KEY UPDATE;

-- name: change_plan(instance_id, plan_id, type, name, details, duration, options)!
-- Everything that can change of a plan. Assigned plans keep their dates.
UPDATE plans
SET
    type = :type, name = :name, details = :details, duration = :duration, options = :options,
    updated_at = now()
WHERE instance_id = :instance_id AND id = :plan_id;

-- name: list_plans(instance_id, name_part, row_offset, row_limit)
-- A page of plans whose names contain name_part, in any case, by id.
SELECT
    id, type, name, details, duration, options, floor(extract(EPOCH FROM created_at))::bigint AS "createdAt",
    floor(extract(EPOCH FROM updated_at))::bigint AS "updatedAt"
FROM plans
WHERE instance_id = :instance_id AND position(lower(:name_part) IN lower(name)) > 0
ORDER BY id OFFSET :row_offset LIMIT :row_limit;

-- name: count_plans(instance_id, name_part)$
-- How many plans all pages of list_plans have.
SELECT count(*) AS total FROM plans
WHERE instance_id = :instance_id AND position(lower(:name_part) IN lower(name)) > 0;

-- name: assign_plans(instance_id, user_ids, plan_ids, last_days, name, keeps_end)
-- A plan each for users, who are held or new: from today until the given day, or for the plan's duration, or without an
-- end. A month from 1 January ends on the 31st. A user who has the plan keeps it with the new end; keeps_end: with its
-- present end, if no day is given and it has not ended. No row for a user if there is no such plan, or the day is over.
-- MATERIALIZED: Citus reads it before it writes.
WITH given AS MATERIALIZED (
    SELECT
        wanted.place, wanted.user_id, plans.id AS plan_id, coalesce(:name, held.name) AS name,
        CASE
            WHEN held.valid_to < clock.today THEN clock.today
            ELSE least(held.valid_from, clock.today)
        END AS valid_from,
        CASE
            WHEN
                :keeps_end::boolean AND wanted.last_day IS NULL AND held.id IS NOT NULL
                AND coalesce(held.valid_to >= clock.today, true) THEN held.valid_to
            ELSE coalesce(wanted.last_day, (clock.today + make_interval(months => plans.duration, days => -1))::date)
        END AS valid_to,
        CASE
            WHEN held.id IS NOT NULL THEN jsonb_build_object(
                'planId', held.plan_id, 'name', held.name, 'validFrom', held.valid_from, 'validTo', held.valid_to
            )
        END AS before
    FROM unnest(:user_ids::bigint [], :plan_ids::bigint [], :last_days::date [])
    WITH ORDINALITY AS wanted (user_id, plan_id, last_day, place)
    INNER JOIN plans ON plans.instance_id = :instance_id AND plans.id = wanted.plan_id
    CROSS JOIN (SELECT (now() AT TIME ZONE 'UTC')::date AS today) AS clock
    LEFT JOIN user_plans AS held
        ON
            held.instance_id = :instance_id AND held.user_id = wanted.user_id AND held.plan_id = wanted.plan_id
            AND held.ended_at IS NULL
    WHERE coalesce(wanted.last_day >= clock.today, true)
),

counter AS (
    UPDATE instance_counters
    SET user_plans = user_plans + cardinality(:user_ids::bigint [])
    WHERE instance_id = :instance_id
    RETURNING user_plans - cardinality(:user_ids::bigint []) AS user_plans
),

assigned AS (
    INSERT INTO user_plans (instance_id, id, user_id, plan_id, name, valid_from, valid_to)
    SELECT
        :instance_id, counter.user_plans + given.place, given.user_id, given.plan_id, given.name, given.valid_from,
        given.valid_to
    FROM given
    CROSS JOIN counter
    ON CONFLICT (instance_id, user_id, plan_id) WHERE ended_at IS NULL DO UPDATE
    SET valid_from = excluded.valid_from, valid_to = excluded.valid_to, name = excluded.name
    RETURNING id, user_id, plan_id, name, valid_from, valid_to
)

SELECT
    assigned.id, assigned.user_id, given.before,
    jsonb_build_object(
        'planId', assigned.plan_id, 'name', assigned.name, 'validFrom', assigned.valid_from,
        'validTo', assigned.valid_to
    ) AS after
FROM assigned
INNER JOIN given ON assigned.user_id = given.user_id
ORDER BY given.place;

-- name: name_newest_plan(instance_id, user_id, name)^
-- Renames the newest of a user's plans that have not ended; returns the old name.
WITH newest AS (
    SELECT id, name FROM user_plans
    WHERE instance_id = :instance_id AND user_id = :user_id AND ended_at IS NULL
    ORDER BY id DESC LIMIT 1
    FOR NO KEY UPDATE
)

UPDATE user_plans
SET name = :name
FROM newest
WHERE user_plans.instance_id = :instance_id AND user_plans.id = newest.id
RETURNING user_plans.plan_id, newest.name AS old_name;

-- name: is_over(last_day)$
-- Whether a day is past, in UTC by the database's clock.
SELECT :last_day::date < (now() AT TIME ZONE 'UTC')::date AS is_over;

-- name: switch_plan(instance_id, user_id, plan_id, from_day, valid_to, name)^
-- Assigns a plan from a day on (null: today) in place of all others that a user, who is locked, has on that day.
-- Those end the day before or, for today, at once; those that would begin later are deleted. No row if the plan does
-- not exist, a day is past, or the user has this plan already with an end before that day.
WITH wanted AS (
    SELECT
        p.id, p.duration, now_is.today, coalesce(:from_day::date, now_is.today) AS begins,
        CASE WHEN coalesce(:from_day::date, now_is.today) = now_is.today THEN now() END AS others_end_at
    FROM plans AS p
    CROSS JOIN (SELECT (now() AT TIME ZONE 'UTC')::date AS today) AS now_is
    WHERE
        p.instance_id = :instance_id AND p.id = :plan_id
        AND coalesce(:from_day::date >= now_is.today, true)
        AND coalesce(:valid_to::date >= coalesce(:from_day::date, now_is.today), true)
),

held AS (
    SELECT
        up.id, up.plan_id, up.valid_from, up.valid_to,
        jsonb_build_object(
            'planId', up.plan_id, 'name', up.name, 'validFrom', up.valid_from, 'validTo', up.valid_to
        ) AS plan
    FROM user_plans AS up
    CROSS JOIN wanted
    WHERE
        up.instance_id = :instance_id AND up.user_id = :user_id AND up.ended_at IS NULL
        AND coalesce(up.valid_to >= wanted.today, true)
),

others AS (
    SELECT held.id, held.plan, held.valid_from > wanted.today AND held.valid_from >= wanted.begins AS is_cancelled
    FROM held
    CROSS JOIN wanted
    WHERE held.plan_id <> :plan_id AND coalesce(held.valid_to >= wanted.begins, true)
),

cancelled AS (
    DELETE FROM user_plans
    USING others
    WHERE user_plans.instance_id = :instance_id AND user_plans.id = others.id AND others.is_cancelled
    RETURNING user_plans.id, others.plan AS before, true AS has_ended, NULL::date AS valid_to
),

ended AS (
    UPDATE user_plans
    SET
        valid_to = greatest(wanted.begins - 1, user_plans.valid_from),
        ended_at = wanted.others_end_at
    FROM others
    CROSS JOIN wanted
    WHERE user_plans.instance_id = :instance_id AND user_plans.id = others.id AND NOT others.is_cancelled
    RETURNING user_plans.id, others.plan AS before, user_plans.ended_at IS NOT NULL AS has_ended, user_plans.valid_to
),

counter AS (
    UPDATE instance_counters
    SET user_plans = user_plans + 1
    WHERE instance_id = :instance_id AND EXISTS (SELECT FROM wanted)
    RETURNING user_plans AS id
),

begun AS (
    INSERT INTO user_plans AS mine (instance_id, id, user_id, plan_id, name, valid_from, valid_to)
    SELECT
        :instance_id, counter.id, :user_id, wanted.id, :name, wanted.begins,
        coalesce(:valid_to::date, (wanted.begins + make_interval(months => wanted.duration, days => -1))::date)
    FROM wanted
    CROSS JOIN counter
    ON CONFLICT (instance_id, user_id, plan_id) WHERE ended_at IS NULL DO UPDATE
    SET
        valid_from = CASE
            WHEN mine.valid_to < (excluded.created_at AT TIME ZONE 'UTC')::date THEN excluded.valid_from
            ELSE least(mine.valid_from, excluded.valid_from)
        END,
        valid_to = excluded.valid_to,
        name = coalesce(excluded.name, mine.name)
    WHERE
        mine.valid_to < (excluded.created_at AT TIME ZONE 'UTC')::date
        OR coalesce(mine.valid_to >= excluded.valid_from - 1, true)
    RETURNING mine.id, mine.plan_id, mine.name, mine.valid_from, mine.valid_to
)

SELECT
    begun.id, (SELECT held.plan FROM held WHERE held.plan_id = :plan_id) AS before,
    jsonb_build_object(
        'planId', begun.plan_id, 'name', begun.name, 'validFrom', begun.valid_from, 'validTo', begun.valid_to
    ) AS after,
    coalesce(
        (
            SELECT jsonb_agg(
                jsonb_build_object(
                    'id', gone.id, 'before', gone.before,
                    'after',
                    CASE WHEN NOT gone.has_ended THEN gone.before || jsonb_build_object('validTo', gone.valid_to) END
                )
                ORDER BY gone.id
            )
            FROM (SELECT * FROM ended UNION ALL SELECT * FROM cancelled) AS gone
        ),
        '[]'::jsonb
    ) AS ended
FROM begun;

-- name: end_plan(instance_id, user_id, plan_id, last_day)^
-- Ends a plan of a user, who is locked: at once if last_day is null, else with that day. A plan that would begin
-- later is deleted. No row if the user does not have it, or the day is past. If the plan already ends before that
-- day, nothing changes and is_later is true.
WITH held AS (
    SELECT
        up.id, now_is.today, CASE WHEN :last_day::date IS NULL THEN now() END AS ends_at,
        coalesce(:last_day::date, now_is.today) < up.valid_from AS is_cancelled,
        coalesce(:last_day::date > up.valid_to, false) AS is_later,
        jsonb_build_object(
            'planId', up.plan_id, 'name', up.name, 'validFrom', up.valid_from, 'validTo', up.valid_to
        ) AS plan
    FROM user_plans AS up
    CROSS JOIN (SELECT (now() AT TIME ZONE 'UTC')::date AS today) AS now_is
    WHERE
        up.instance_id = :instance_id AND up.user_id = :user_id AND up.plan_id = :plan_id AND up.ended_at IS NULL
        AND coalesce(up.valid_to >= now_is.today, true)
        AND coalesce(:last_day::date >= now_is.today, true)
),

cancelled AS (
    DELETE FROM user_plans
    USING held
    WHERE user_plans.instance_id = :instance_id AND user_plans.id = held.id AND held.is_cancelled
    RETURNING held.plan
),

ended AS (
    UPDATE user_plans
    SET
        valid_to = coalesce(:last_day::date, greatest(held.today - 1, user_plans.valid_from)),
        ended_at = held.ends_at
    FROM held
    WHERE
        user_plans.instance_id = :instance_id AND user_plans.id = held.id
        AND NOT held.is_cancelled AND NOT held.is_later
    RETURNING held.plan, held.ends_at, user_plans.valid_to
)

SELECT
    plan AS before, CASE WHEN ends_at IS NULL THEN plan || jsonb_build_object('validTo', valid_to) END AS after,
    false AS is_later
FROM ended
UNION ALL
SELECT plan AS before, NULL AS after, false AS is_later FROM cancelled
UNION ALL
SELECT plan AS before, plan AS after, true AS is_later FROM held
WHERE is_later;

-- name: list_active_plans(instance_id, user_id)
-- A user's plans, current and future.
SELECT id, plan_id FROM user_plans
WHERE
    instance_id = :instance_id AND user_id = :user_id AND ended_at IS NULL
    AND coalesce(valid_to >= (now() AT TIME ZONE 'UTC')::date, true)
ORDER BY id;
