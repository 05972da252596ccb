"""Instances and their settings, principals and API keys, access, rate limits, and the current call."""
