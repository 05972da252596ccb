"""The server as a program: the aiohttp application, its connections, worker processes, the first start."""
