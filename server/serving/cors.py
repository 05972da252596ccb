"""Cross-origin requests from browsers (OFFICERPC_CORS_ORIGINS).

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
"""For this time a browser may cache the answer to a preflight."""


def allowing(origins: tuple[str, ...], handler: Handler) -> Handler:
    """Wrap a handler: pages of these origins may send requests and read the answers.

    Credentials such as cookies are never allowed: the page sends the key in a header. Answers to other
    origins have no CORS headers.

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
