"""The server process: aiohttp application, client connections, worker processes, first start."""
