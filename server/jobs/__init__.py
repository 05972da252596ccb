"""Work that waits in tables and is done after a call: claim, lease, retry, park."""
