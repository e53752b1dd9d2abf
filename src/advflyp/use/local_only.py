"""Close what Gradio's server leaves open, for a page that is for this machine only."""

from typing import Any

HOSTS = ("127.0.0.1", "localhost")
# Bytes of a request that is not an upload; Gradio limits uploads itself.
MAX_BODY = 1 << 20
# Gradio's page needs inline scripts and styles; nothing may come from another address, nor be sent to one.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self' data: blob:; worker-src 'self' blob:; font-src 'self' data:; "
    "form-action 'none'; frame-ancestors 'none'; base-uri 'self'"
)
ADDED = (
    (b"content-security-policy", POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)
REFUSAL = b"only this page's own requests, to 127.0.0.1 or localhost, are answered"


class LocalOnly:
    """ASGI middleware: refuses other host names, other pages' requests and large bodies; sends a strict policy.

    If a foreign page makes its name point here (DNS rebinding), its requests still carry that name as the host.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        if host.partition(":")[0] not in HOSTS or origin not in (None, f"http://{host}"):
            await send(
                {"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]}
            )
            return await send({"type": "http.response.body", "body": REFUSAL})
        left = None if scope["path"].rstrip("/").endswith("/upload") else MAX_BODY

        async def bounded() -> Any:
            nonlocal left
            message = await receive()
            if left is not None:
                left -= len(message.get("body", b""))
                if left < 0:
                    raise ValueError("the request is too large")
            return message

        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *ADDED]}
            await send(message)

        return await self.app(scope, bounded, with_policy)
