"""Postgres: the pool, transactions, named queries, migrations, the embedded server.

It runs SQL by name and knows nothing of tenants.
"""
