-- Citus cannot carry SQL functions with bodies of the standard's form (RETURN, BEGIN ATOMIC) to its shards: the same
-- functions with their bodies as text.

CREATE OR REPLACE FUNCTION bigrams(words text) RETURNS tsvector
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
AS $$
SELECT array_to_tsvector(array_agg(DISTINCT substr(words, place, 2)))
FROM generate_series(1, length(words)) AS place
$$;

CREATE OR REPLACE FUNCTION bigrams_of(words text) RETURNS tsquery
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
AS $$
SELECT
    string_agg(
        '''' || replace(replace(substr(words, place, 2), '\', '\\'), '''', '''''') || ''''
        || CASE WHEN length(words) = 1 THEN ':*' ELSE '' END,
        ' & '
    )::tsquery
FROM generate_series(1, greatest(length(words) - 1, 1)) AS place
$$;

CREATE OR REPLACE FUNCTION event_xid() RETURNS xid8
LANGUAGE sql VOLATILE
AS $$
SELECT (pg_current_xact_id()::text::bigint + ahead)::text::xid8 FROM event_clock
$$;

-- Rows that another session takes meanwhile are gone when this one gets to them.
CREATE OR REPLACE FUNCTION purge_old_events(row_limit integer) RETURNS SETOF uuid
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    last_day constant date := (now() AT TIME ZONE 'UTC')::date - 365;
BEGIN
    RETURN QUERY
    WITH due AS MATERIALIZED (
        SELECT instance_id, xid, place
        FROM public.events
        WHERE (created_at AT TIME ZONE 'UTC')::date < last_day
        ORDER BY (created_at AT TIME ZONE 'UTC')::date
        LIMIT row_limit
    )
    DELETE FROM public.events
    USING due
    WHERE events.instance_id = due.instance_id AND events.xid = due.xid AND events.place = due.place
    RETURNING events.id;
END
$$
