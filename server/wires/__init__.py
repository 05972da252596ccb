"""The wire formats, one module each: a wire parses requests, calls the dispatcher and renders answers."""
