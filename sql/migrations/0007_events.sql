-- Every change, written in the transaction that makes it, never altered: the audit, the feed of changes and
-- what webhooks deliver are all read from here.
-- instance_id 0: what belongs to no instance, such as an operator's key. A transaction writes its events at once, in
-- their places. Whoever reads them in this order, and no further than the oldest transaction that still runs, skips
-- nothing.
-- Transactions are numbered by the cluster: in one into which a dump was restored they begin anew, and would come before
-- what happened already. ahead is added to them; see the query mend_event_clock.
CREATE TABLE event_clock (
    ahead bigint NOT NULL
);

INSERT INTO event_clock (ahead) VALUES (0);

CREATE FUNCTION event_xid() RETURNS xid8
LANGUAGE sql VOLATILE
RETURN (SELECT (pg_current_xact_id()::text::bigint + ahead)::text::xid8 FROM event_clock);

-- Whatever has a lower number is committed or will never be.
CREATE FUNCTION event_horizon() RETURNS xid8
LANGUAGE sql STABLE
RETURN (SELECT (pg_snapshot_xmin(pg_current_snapshot())::text::bigint + ahead)::text::xid8 FROM event_clock);

CREATE TABLE events (
    instance_id bigint NOT NULL,
    xid xid8 NOT NULL DEFAULT event_xid(),
    place integer NOT NULL,
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    type text NOT NULL,
    user_id bigint,
    before jsonb,
    after jsonb,
    method text NOT NULL,
    key_id bigint NOT NULL,
    key_name text NOT NULL,
    request_id text NOT NULL,
    address text,
    origin text,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT events_pkey PRIMARY KEY (instance_id, xid, place)
);

CREATE INDEX events_by_user ON events (instance_id, user_id, xid, place);

CREATE INDEX events_by_id ON events (instance_id, id);

CREATE INDEX events_age ON events (created_at);

-- Not even the owner of the tables alters what happened. Only what has been kept for its time may go.
CREATE FUNCTION refuse_to_alter_events() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    IF tg_op = 'DELETE' AND old.created_at < now() - interval '365 days' THEN
        RETURN old;
    END IF;
    RAISE EXCEPTION 'events are not altered' USING ERRCODE = 'insufficient_privilege';
END
$$;

CREATE TRIGGER events_stay BEFORE UPDATE OR DELETE ON events
FOR EACH ROW EXECUTE FUNCTION refuse_to_alter_events();

CREATE TRIGGER events_are_not_emptied BEFORE TRUNCATE ON events
FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_alter_events();
