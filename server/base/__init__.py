"""What every room may use: errors and their codes, settings, models, secrets, shares, logs, metrics.

It imports no other room.
"""
