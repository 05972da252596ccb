"""What changed: the one writer of events, their two readings (audit and feed), and webhooks."""
