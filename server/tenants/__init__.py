"""Instances and their settings, API keys, who may do what, limits; the call that is being run."""
