-- The documents of users that are not deleted, for filters (server/directory/scim/filters.py). `folded` is the resource
-- (the same as in server/directory/scim/users.py) with all names and strings in lower case. `exact` has only the
-- case-sensitive attributes, as they are shown. named: the parts that the filter reads (filters.named_parts). The others are
-- not built: for a filter with many candidates this would take most of the time. address: URL of the server; base: URL of
-- the instance's resources.
SELECT
    u.id,
    jsonb_build_object(
        'folded', lower(shown.resource::text)::jsonb,
        'exact', jsonb_strip_nulls(
            jsonb_build_object(
                'id', shown.resource -> 'id',
                'externalid', shown.resource -> 'externalId',
                'profileurl', shown.resource -> 'profileUrl',
                'photos', CASE
                    WHEN 'photos' = any(:named::text [])
                        THEN shown.resource -> 'photos'
                END,
                'groups', shown.resource -> 'groups',
                'x509certificates', shown.resource -> 'x509Certificates',
                'urn:ietf:params:scim:schemas:extension:enterprise:2.0:user', jsonb_build_object(
                    'manager', shown.resource #> '{urn:ietf:params:scim:schemas:extension:enterprise:2.0:User,manager}'
                ),
                'meta', CASE
                    WHEN 'meta' = any(:named::text [])
                        THEN jsonb_build_object(
                            'resourcetype', 'User',
                            'location', :base::text || '/Users/' || u.id,
                            'version', 'W/"' || to_hex(floor(extract(EPOCH FROM u.updated_at) * 1000000)::bigint) || '"'
                        )
                END
            )
        )
    ) AS document
FROM users AS u
CROSS JOIN LATERAL (
    SELECT
        jsonb_strip_nulls(
            (u.attributes - '{emailKeys,emails,phoneNumbers,photos,manager,name,preferredLanguage}'::text [])
            - '{employeeNumber,costCenter,organization,division}'::text []
            || jsonb_build_object(
                'id', u.id::text,
                'externalId', u.external_id,
                'userName', coalesce(u.login, u.email),
                'name', CASE
                    WHEN 'name' = any(:named::text [])
                        THEN nullif(
                            jsonb_strip_nulls(
                                jsonb_build_object(
                                    'formatted',
                                    nullif(
                                        left(
                                            btrim(
                                                coalesce(u.fields ->> 'firstname', '') || ' '
                                                || coalesce(u.fields ->> 'lastname', '')
                                            ), 200
                                        ), ''
                                    )
                                )
                                || coalesce(u.attributes -> 'name', '{}')
                                || jsonb_build_object(
                                    'givenName', nullif(u.fields ->> 'firstname', ''),
                                    'familyName', nullif(u.fields ->> 'lastname', ''),
                                    'middleName', nullif(u.fields ->> 'middlename', '')
                                )
                            ), '{}'
                        )
                END,
                'displayName', u.display_name,
                'title', nullif(u.profile ->> 'title', ''),
                'preferredLanguage', CASE
                    WHEN 'preferred_language' = any(:named::text [])
                        THEN CASE
                            WHEN lower(substring(u.attributes ->> 'preferredLanguage', '^[A-Za-z]{2}(?![A-Za-z])')) <> u.language
                                THEN u.language
                            ELSE coalesce(u.attributes ->> 'preferredLanguage', u.language)
                        END
                END,
                'timezone', nullif(u.app_values ->> 'timezone', ''),
                'active', u.is_active,
                'emails', CASE
                    WHEN 'emails' = any(:named::text [])
                        THEN nullif(
                            CASE
                                WHEN strpos(u.email, '@') = 0 OR u.attributes -> 'emailKeys' ? u.email_key THEN '[]'
                                ELSE jsonb_build_array(
                                    jsonb_strip_nulls(
                                        jsonb_build_object(
                                            'value', u.email,
                                            'type',
                                            CASE
                                                WHEN NOT u.attributes @@ 'exists($.emails[*] ? (@.type == "work"))' THEN 'work'
                                            END,
                                            'primary',
                                            CASE WHEN NOT u.attributes @@ 'exists($.emails[*] ? (@.primary == true))' THEN true END
                                        )
                                    )
                                )
                            END || coalesce(u.attributes -> 'emails', '[]'), '[]'
                        )
                END,
                'phoneNumbers', CASE
                    WHEN 'phone_numbers' = any(:named::text [])
                        THEN CASE
                            WHEN jsonb_array_length(u.profile -> 'phones') > 0
                                THEN (
                                    SELECT jsonb_agg(coalesce(details.entry, jsonb_build_object('value', phone.number)) ORDER BY phone.seq)
                                    FROM jsonb_array_elements(u.profile -> 'phones') WITH ORDINALITY AS phone (number, seq)
                                    LEFT JOIN LATERAL (
                                        SELECT entry
                                        FROM jsonb_array_elements(u.attributes -> 'phoneNumbers') AS kept (entry)
                                        WHERE entry -> 'value' = phone.number
                                        LIMIT 1
                                    ) AS details ON true
                                )
                        END
                END,
                'photos', CASE
                    WHEN 'photos' = any(:named::text [])
                        THEN nullif(
                            CASE
                                WHEN u.avatar = '' OR u.attributes -> 'photos' @> jsonb_build_array(jsonb_build_object('value', addresses.avatar))
                                    THEN '[]'
                                ELSE jsonb_build_array(jsonb_build_object('value', addresses.avatar, 'type', 'photo'))
                            END || coalesce(u.attributes -> 'photos', '[]'), '[]'
                        )
                END,
                'groups', CASE
                    WHEN 'groups' = any(:named::text [])
                        THEN (
                            SELECT
                                jsonb_agg(
                                    jsonb_build_object(
                                        'value', g.id::text, '$ref', '../Groups/' || g.id, 'display', g.name, 'type', 'direct'
                                    )
                                )
                            FROM (
                                SELECT 0 AS id, 'Admins' AS name WHERE u.is_admin
                                UNION ALL
                                SELECT member_of.id, member_of.name
                                FROM group_members AS gm
                                INNER JOIN groups AS member_of
                                    ON member_of.instance_id = :instance_id AND member_of.id = gm.group_id
                                WHERE gm.instance_id = :instance_id AND gm.user_id = u.id
                            ) AS g
                        )
                END,
                'meta', CASE
                    WHEN 'meta' = any(:named::text [])
                        THEN jsonb_build_object(
                            'resourceType', 'User',
                            'created', to_char(u.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
                            'lastModified', to_char(u.updated_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
                        )
                END,
                'urn:ietf:params:scim:schemas:extension:enterprise:2.0:User', CASE
                    WHEN 'enterprise' = any(:named::text [])
                        THEN nullif(
                            jsonb_strip_nulls(
                                jsonb_build_object(
                                    'department', nullif(u.profile ->> 'department', ''),
                                    'employeeNumber', u.attributes -> 'employeeNumber',
                                    'costCenter', u.attributes -> 'costCenter',
                                    'organization', u.attributes -> 'organization',
                                    'division', u.attributes -> 'division',
                                    'manager', managers.manager
                                )
                            ), '{}'
                        )
                END,
                'urn:ietf:params:scim:schemas:extension:officerpc:2.0:User', CASE
                    WHEN 'office' = any(:named::text [])
                        THEN nullif(
                            jsonb_strip_nulls(
                                jsonb_build_object('quotas', nullif(
                                    jsonb_strip_nulls(jsonb_build_object('mail', u.mail_quota, 'files', u.files_quota)), '{}'
                                ))
                            ), '{}'
                        )
                END
            )
        ) AS resource
    FROM (SELECT CASE WHEN starts_with(u.avatar, '/') THEN :address::text ELSE '' END || u.avatar AS avatar) AS addresses
    LEFT JOIN LATERAL (
        SELECT
            jsonb_build_object(
                'value', m.id::text, '$ref', '../Users/' || m.id, 'displayName', m.display_name
            ) AS manager
        FROM users AS m
        WHERE
            'manager' = any(:named::text []) AND m.instance_id = :instance_id AND m.deleted_at IS NULL
            AND m.id = (u.attributes ->> 'manager')::bigint
    ) AS managers ON true
) AS shown
WHERE u.instance_id = :instance_id AND u.deleted_at IS NULL;
