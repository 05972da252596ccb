"""The queue of work that is done after a call: claim, lease, retry, give up."""
