"""Events: their writer, their two readers (audit and feed), and webhooks."""
