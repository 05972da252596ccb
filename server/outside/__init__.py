"""What is reached outside: SMTP, Microsoft Graph, addresses that tenants name, picture files.

It touches no table.
"""
