-- Readiness is shown by a real write: one row, which each worker updates every few seconds while it is asked.
CREATE TABLE heartbeats (
    id integer NOT NULL,
    written_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT heartbeats_pkey PRIMARY KEY (id)
) WITH (fillfactor = 10);
