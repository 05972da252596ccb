-- Statistics for the planner as tables grow, whoever serves.

-- Runs ANALYZE on one table with the rights of the owner of the tables, so that a role that owns none can have it done.
-- Nothing happens while another session holds a conflicting lock, such as that of another ANALYZE.
CREATE FUNCTION analyze_table(name regclass) RETURNS void
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format('ANALYZE (SKIP_LOCKED) %s', name);
END
$$
