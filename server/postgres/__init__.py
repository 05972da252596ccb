"""Postgres: the pool, transactions, named queries, migrations, the embedded server.

It knows SQL by name and no tenant.
"""
