-- The documents of groups for filters, including Admins (id 0); see scim_user_documents.
SELECT
    g.id,
    jsonb_build_object(
        'folded', lower(shown.resource::text)::jsonb,
        'exact', jsonb_strip_nulls(
            jsonb_build_object(
                'id', shown.resource -> 'id',
                'externalid', shown.resource -> 'externalId',
                'members', shown.resource -> 'members',
                'meta', jsonb_build_object('resourcetype', 'Group', 'location', :base::text || '/Groups/' || g.id)
            )
        )
    ) AS document
FROM scim_groups AS g
CROSS JOIN LATERAL (
    SELECT
        jsonb_strip_nulls(
            jsonb_build_object(
                'id', g.id::text,
                'externalId', g.external_id,
                'displayName', g.name,
                'members', CASE
                    WHEN 'members' = any(:named::text [])
                        THEN (
                            SELECT
                                jsonb_agg(
                                    jsonb_build_object(
                                        'value', member ->> 'id', '$ref', '../Users/' || (member ->> 'id'),
                                        'display', member -> 'name', 'type', 'User'
                                    )
                                )
                            FROM jsonb_array_elements(g.members) AS listed (member)
                        )
                END,
                'meta', jsonb_build_object(
                    'resourceType', 'Group',
                    'created', to_char(g.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
                    'lastModified', to_char(g.updated_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
                )
            )
        ) AS resource
) AS shown;
