"""officerpc: a user-provisioning server for office suites."""
