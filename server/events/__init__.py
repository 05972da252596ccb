"""What changed: the only writer of events, and the webhooks that are told of them."""
