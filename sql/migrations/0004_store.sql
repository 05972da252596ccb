-- The store (seeds/003): what it calls its users by, how many sessions each may have, and plans.

ALTER TABLE instance_counters
ADD COLUMN plans bigint NOT NULL DEFAULT 0,
ADD COLUMN user_plans bigint NOT NULL DEFAULT 0;

-- external_id: what the shop calls the user; sessions_limit: null for none; suspended_at: since when
-- is_active is false.
ALTER TABLE users
ADD COLUMN uuid uuid NOT NULL DEFAULT gen_random_uuid(),
ADD COLUMN external_id text COLLATE "C",
ADD COLUMN sessions_limit integer,
ADD COLUMN is_plan_admin boolean NOT NULL DEFAULT false,
ADD COLUMN only_sees_readable boolean NOT NULL DEFAULT false,
ADD COLUMN suspended_at timestamptz;

UPDATE users
SET suspended_at = updated_at
WHERE NOT is_active;

-- Partial, so that users without one cost it nothing.
CREATE UNIQUE INDEX users_external_id ON users (instance_id, external_id) WHERE external_id IS NOT NULL;

-- What a page of each of the store's lists is counted off on, without a look at the rows.
CREATE INDEX users_store_active ON users (instance_id, id) WHERE is_active AND deleted_at IS NULL;

CREATE INDEX users_store_deactivated ON users (instance_id, id) WHERE NOT is_active AND deleted_at IS NULL;

CREATE INDEX users_store_admins ON users (instance_id, id) WHERE is_admin AND is_active AND deleted_at IS NULL;

-- duration: months of a prepaid plan. options: what belongs to reading and sales, kept and given back.
CREATE TABLE plans (
    instance_id bigint NOT NULL,
    id bigint NOT NULL,
    type text NOT NULL,
    name text NOT NULL,
    details text NOT NULL,
    duration integer,
    options jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT plans_pkey PRIMARY KEY (instance_id, id),
    CONSTRAINT plans_instance FOREIGN KEY (instance_id) REFERENCES instances (id),
    CONSTRAINT plans_type_known CHECK (type IN ('recurring', 'prepaid')),
    CONSTRAINT plans_duration_prepaid CHECK ((type = 'prepaid') = (duration IS NOT NULL))
);

-- A user's plans. name: null where it is the plan's. Days are those of UTC and valid_to is the last one; null
-- is no end. ended_at is when the end was noticed, for good.
CREATE TABLE user_plans (
    instance_id bigint NOT NULL,
    id bigint NOT NULL,
    user_id bigint NOT NULL,
    plan_id bigint NOT NULL,
    name text,
    valid_from date NOT NULL,
    valid_to date,
    created_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz,
    CONSTRAINT user_plans_pkey PRIMARY KEY (instance_id, id),
    CONSTRAINT user_plans_user FOREIGN KEY (instance_id, user_id)
    REFERENCES users (instance_id, id) ON DELETE CASCADE,
    CONSTRAINT user_plans_plan FOREIGN KEY (instance_id, plan_id) REFERENCES plans (instance_id, id),
    CONSTRAINT user_plans_period CHECK (valid_to >= valid_from)
);

CREATE INDEX user_plans_by_user ON user_plans (instance_id, user_id, id);

-- Assigned again while it lasts, a plan gets another end instead of a second row.
CREATE UNIQUE INDEX user_plans_lasting ON user_plans (instance_id, user_id, plan_id) WHERE ended_at IS NULL;

CREATE INDEX user_plans_expiry ON user_plans (valid_to) WHERE ended_at IS NULL;
