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
-- The same, kept from others until the transaction ends.
SELECT type, name, details, duration, options
FROM plans
WHERE instance_id = :instance_id AND id = :plan_id
FOR NO KEY UPDATE;

-- name: change_plan(instance_id, plan_id, type, name, details, duration, options)!
-- All of a plan that can change. Periods that users hold stay as they are.
UPDATE plans
SET
    type = :type, name = :name, details = :details, duration = :duration, options = :options,
    updated_at = now()
WHERE instance_id = :instance_id AND id = :plan_id;

-- name: list_plans(instance_id, name_part, row_offset, row_limit)
-- A page of plans whose names hold the part, in any case, in the order of their ids; total is of all pages.
SELECT
    id, type, name, details, duration, options, floor(extract(EPOCH FROM created_at))::bigint AS "createdAt",
    floor(extract(EPOCH FROM updated_at))::bigint AS "updatedAt"
FROM plans
WHERE instance_id = :instance_id AND position(lower(:name_part) IN lower(name)) > 0
ORDER BY id
OFFSET :row_offset
LIMIT :row_limit;

-- name: count_plans(instance_id, name_part)$
-- How many list_plans could show.
SELECT count(*) AS total
FROM plans
WHERE instance_id = :instance_id AND position(lower(:name_part) IN lower(name)) > 0;

-- name: assign_plan(instance_id, user_id, plan_id, valid_to, name, keeps_end)^
-- From today until the given day, or for the plan's duration, or without an end: a month from 1 January ends on the
-- 31st. A user who has the plan keeps it with the new end; with the end that it has where keeps_end says so, no day is
-- given and it has not ended. No row where there is no such plan, or the day is over.
WITH plan AS (
    SELECT id, duration
    FROM plans
    WHERE instance_id = :instance_id AND id = :plan_id
),

before AS (
    SELECT
        jsonb_build_object(
            'planId', plan_id, 'name', name, 'validFrom', valid_from, 'validTo', valid_to
        ) AS held
    FROM user_plans
    WHERE instance_id = :instance_id AND user_id = :user_id AND plan_id = :plan_id AND ended_at IS NULL
),

counter AS (
    UPDATE instance_counters
    SET user_plans = user_plans + 1
    WHERE instance_id = :instance_id AND EXISTS (SELECT FROM plan)
    RETURNING user_plans AS id, (now() AT TIME ZONE 'UTC')::date AS today
)

INSERT INTO user_plans AS held (instance_id, id, user_id, plan_id, name, valid_from, valid_to)
SELECT
    :instance_id, counter.id, :user_id, plan.id, :name, counter.today,
    coalesce(:valid_to::date, (counter.today + make_interval(months => plan.duration, days => -1))::date)
FROM plan
CROSS JOIN counter
WHERE coalesce(:valid_to::date >= counter.today, true)
ON CONFLICT (instance_id, user_id, plan_id) WHERE ended_at IS NULL DO UPDATE
SET
    valid_from = CASE WHEN held.valid_to < excluded.valid_from THEN excluded.valid_from ELSE held.valid_from END,
    valid_to = CASE
        WHEN
            :keeps_end::boolean AND :valid_to::date IS NULL
            AND coalesce(held.valid_to >= excluded.valid_from, true) THEN held.valid_to
        ELSE excluded.valid_to
    END,
    name = coalesce(excluded.name, held.name)
RETURNING
    held.id, (SELECT before.held FROM before) AS before,
    jsonb_build_object(
        'planId', held.plan_id, 'name', held.name, 'validFrom', held.valid_from, 'validTo', held.valid_to
    ) AS after;

-- name: name_newest_plan(instance_id, user_id, name)^
-- What the newest of a user's plans that last is called for it, and was before.
WITH newest AS (
    SELECT id, name
    FROM user_plans
    WHERE instance_id = :instance_id AND user_id = :user_id AND ended_at IS NULL
    ORDER BY id DESC
    LIMIT 1
    FOR NO KEY UPDATE
)

UPDATE user_plans
SET name = :name
FROM newest
WHERE user_plans.instance_id = :instance_id AND user_plans.id = newest.id
RETURNING user_plans.plan_id, newest.name AS old_name;

-- name: is_over(last_day)$
-- Whether a day is over, in UTC and by this clock.
SELECT :last_day::date < (now() AT TIME ZONE 'UTC')::date AS is_over;
