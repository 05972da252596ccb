-- Webhooks of many tenants beside one another: which failed for how long, which are deleted, and what is looked for
-- among many deliveries.

-- deleted_at: shown to nobody any more; the pruning takes its deliveries, then itself.
-- failing_since: when the first try failed after the last one that did not.
ALTER TABLE webhooks
ADD COLUMN deleted_at timestamptz,
ADD COLUMN failing_since timestamptz;

CREATE INDEX webhooks_deleted ON webhooks (instance_id, id) WHERE deleted_at IS NOT NULL;

-- attempts only grows, so that it names a try; first_attempt: what it was when the delivery was last asked for.
ALTER TABLE deliveries ADD COLUMN first_attempt integer NOT NULL DEFAULT 0;

-- Pages of one state are as quick as those of all, which are merged from the three.
DROP INDEX deliveries_log;

CREATE INDEX deliveries_log ON deliveries (instance_id, webhook_id, state, created_at, event_id);

-- Pending ones have their time too, once nobody tries them. By days, as events_age is and for the same reason.
DROP INDEX deliveries_age;

CREATE INDEX deliveries_age ON deliveries (((created_at AT TIME ZONE 'UTC')::date));
