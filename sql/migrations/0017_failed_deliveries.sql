-- Deliveries whose last try failed, tried again or given up, page by page.
CREATE INDEX deliveries_failing ON deliveries (instance_id, webhook_id, created_at, event_id) WHERE error IS NOT NULL;
