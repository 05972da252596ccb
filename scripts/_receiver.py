"""A receiver of webhooks for bench.py that counts deliveries.

Its argument is the number of milliseconds until it answers a POST. It prints its port. GET answers the number
of POSTs and the seconds from the first to the last of them.
"""

import asyncio
import sys
import time
from typing import cast

import uvloop

ACCEPTED = b"HTTP/1.1 204 No Content\r\n\r\n"


class Receiver(asyncio.Protocol):
    """One connection. Handles only the HTTP that the server's client sends, to be fast."""

    seen = 0
    first = last = 0.0

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        if head.startswith(b"GET"):
            body = f"{Receiver.seen} {Receiver.last - Receiver.first}".encode()
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            self._buffer = b""
            return
        length = int(head.lower().split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        if len(rest) < length:
            return
        self._buffer = rest[length:]
        Receiver.last = time.perf_counter()
        Receiver.first = Receiver.first or Receiver.last
        Receiver.seen += 1
        if self._delay:
            asyncio.get_running_loop().call_later(self._delay, self._transport.write, ACCEPTED)
        else:
            self._transport.write(ACCEPTED)


async def main() -> None:
    delay = float(sys.argv[1]) / 1000
    server = await asyncio.get_running_loop().create_server(lambda: Receiver(delay), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


uvloop.run(main())
