"""Users and groups as SCIM resources (RFC 7643): models, columns of attributes, filters, PATCH. No HTTP."""
