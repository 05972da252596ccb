"""Users and groups as SCIM resources (RFC 7643): models, what each attribute is in the database, filters.

It touches the rest of directory and, for its statements, postgres; it knows nothing of HTTP.
"""
