"""Cross-origin requests from browsers, where a setting allows them.

Source: https://fetch.spec.whatwg.org/#http-cors-protocol
"""

from aiohttp import hdrs, web

from server.wires.http import Handler, answer, request_id_of

METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE"
REQUEST_HEADERS = (
    "x-api-key, Token, ProvisioningKey, X-User-Token, Content-Type, Idempotency-Key, Dry-Run, X-Origin, "
    "X-Request-Id, Locale, If-None-Match, If-Match, Authorization"
)
EXPOSED_HEADERS = (
    "X-Request-Id, X-Error-Code, X-Required-Scope, Retry-After, RateLimit, RateLimit-Policy, "
    "X-RateLimit-Limit, X-RateLimit-Remaining, X-RateLimit-Reset, Idempotency-Replayed, Dry-Run, "
    "WWW-Authenticate, ETag, Location"
)
PREFLIGHT_SECONDS = 600
"""For how long a browser may remember the answer to a preflight."""


def allowing(origins: tuple[str, ...], handler: Handler) -> Handler:
    """Around a handler: pages of some origins may send requests and read the answers.

    Credentials that a browser would add by itself, such as cookies, are never allowed: a key is a header that
    the page sends. Other origins get no CORS headers, and are answered as if CORS were off.

    Args:
        origins: as browsers send them, such as https://shop.example.
    """
    known = frozenset(origins)

    async def handle(request: web.Request) -> web.StreamResponse:
        origin = request.headers.get(hdrs.ORIGIN)
        if (
            origin in known
            and request.method == hdrs.METH_OPTIONS
            and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
        ):
            response: web.StreamResponse = answer(
                204,
                None,
                {
                    hdrs.ACCESS_CONTROL_ALLOW_METHODS: METHODS,
                    hdrs.ACCESS_CONTROL_ALLOW_HEADERS: REQUEST_HEADERS,
                    hdrs.ACCESS_CONTROL_MAX_AGE: str(PREFLIGHT_SECONDS),
                    "X-Request-Id": request_id_of(request.headers.get("X-Request-Id")),
                },
            )
        else:
            response = await handler(request)
            if origin in known:
                response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = EXPOSED_HEADERS
        if origin in known and origin is not None:
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
        response.headers.add(hdrs.VARY, hdrs.ORIGIN)  # a cache must not give one origin's answer to another
        return response

    return handle
