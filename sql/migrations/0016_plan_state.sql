-- What a user's plan is today, by the days of UTC: shown of users in several places.
CREATE FUNCTION plan_state(valid_from date, valid_to date, ended_at timestamptz) RETURNS text
LANGUAGE sql STABLE
AS $$
SELECT CASE
    WHEN ended_at IS NOT NULL OR valid_to < (now() AT TIME ZONE 'UTC')::date THEN 'ended'
    WHEN valid_from > (now() AT TIME ZONE 'UTC')::date THEN 'scheduled'
    ELSE 'active'
END
$$;
