-- What a change was before and after, read by tenants: the audit, webhooks and the feed of changes.

ALTER TABLE instance_counters ADD COLUMN webhooks bigint NOT NULL DEFAULT 0;

-- Who asked for what waits in the queue: the change is theirs, though a worker makes it.
ALTER TABLE documents ADD COLUMN asked_by jsonb NOT NULL DEFAULT '{}';

-- A user as events show it. What differs between two of these is what a call changed.
CREATE FUNCTION user_state(u users) RETURNS jsonb
LANGUAGE sql STABLE
AS $$
SELECT jsonb_build_object(
    'email', u.email, 'displayName', u.display_name, 'isActive', u.is_active, 'isAdmin', u.is_admin,
    'isConfirmed', u.confirmed_at IS NOT NULL, 'profile', u.profile, 'values', u.app_values,
    'settings', u.settings, 'apps', u.apps, 'avatar', u.avatar, 'fields', u.fields, 'language', u.language,
    'externalId', u.external_id, 'sessionsLimit', u.sessions_limit, 'isPlanAdmin', u.is_plan_admin,
    'onlySeesReadable', u.only_sees_readable
)
$$;

-- The audit is read from the newest on, all of it or that of one user.
CREATE INDEX events_by_time ON events (instance_id, created_at, xid, place);

-- By days, for the pruning alone: an index of all instances' moments looks to the planner like a way to read one
-- instance's in their order, past those of all others.
DROP INDEX events_age;

CREATE INDEX events_age ON events (((created_at AT TIME ZONE 'UTC')::date));

DROP INDEX events_by_user;

CREATE INDEX events_by_user ON events (instance_id, user_id, created_at, xid, place) WHERE user_id IS NOT NULL;

-- Whose address it was, once the user itself is gone.
CREATE INDEX events_of_purged ON events (instance_id, lower(before ->> 'email')) WHERE type = 'user.purged';

-- read_xid and read_place: the last event that deliveries were made of. It begins before whatever still runs, so that
-- nothing that commits later is missed. types: empty for all of them. The secrets are in clear, as each delivery is
-- signed with them; the old one signs too until its time is over.
CREATE TABLE webhooks (
    instance_id bigint NOT NULL,
    id bigint NOT NULL,
    url text NOT NULL,
    description text NOT NULL,
    types text [] NOT NULL,
    skip_origin text,
    is_active boolean NOT NULL DEFAULT true,
    disabled_because text,
    secret text NOT NULL,
    old_secret text,
    old_secret_until timestamptz,
    read_xid xid8 NOT NULL DEFAULT event_horizon(),
    read_place integer NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT webhooks_pkey PRIMARY KEY (instance_id, id),
    CONSTRAINT webhooks_instance FOREIGN KEY (instance_id) REFERENCES instances (id)
);

-- One event for one webhook. due_at: when it is to be tried next or, while somebody tries it, when others may take
-- that one for dead. attempts: how often it was begun. body: the bytes, the same for each try.
CREATE TABLE deliveries (
    instance_id bigint NOT NULL,
    webhook_id bigint NOT NULL,
    event_id uuid NOT NULL,
    type text NOT NULL,
    body bytea NOT NULL,
    state text NOT NULL DEFAULT 'pending',
    attempts integer NOT NULL DEFAULT 0,
    due_at timestamptz NOT NULL DEFAULT now(),
    status integer,
    error text,
    created_at timestamptz NOT NULL DEFAULT now(),
    done_at timestamptz,
    CONSTRAINT deliveries_pkey PRIMARY KEY (instance_id, webhook_id, event_id),
    CONSTRAINT deliveries_webhook FOREIGN KEY (instance_id, webhook_id)
    REFERENCES webhooks (instance_id, id) ON DELETE CASCADE,
    CONSTRAINT deliveries_state_known CHECK (state IN ('pending', 'delivered', 'failed'))
);

CREATE INDEX deliveries_due ON deliveries (instance_id, webhook_id, due_at) WHERE state = 'pending';

CREATE INDEX deliveries_log ON deliveries (instance_id, webhook_id, created_at, event_id);

CREATE INDEX deliveries_age ON deliveries (created_at) WHERE state <> 'pending';
