"""Instances and their settings, principals and API keys, access, limits; the call that is being run."""
