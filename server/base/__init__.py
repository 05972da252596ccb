"""Shared by all packages: errors and their codes, settings, models, secrets, shares, logs, metrics.

It imports no other package of the server.
"""
