"""External services and data: SMTP, Microsoft Graph, tenants' webhooks, pictures.

It accesses no table.
"""
