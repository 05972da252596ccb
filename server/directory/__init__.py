"""The core, without HTTP: users and what is provisioned for them, groups, profile fields, logins."""
