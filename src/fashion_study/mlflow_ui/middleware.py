"""MLflow's server behind two more rules. `mlflow server --app-name fashion-study` starts this instead.

Only the server's own pages, and programs other than browsers, may write: MLflow itself lets the pages of every port of
this machine write (`http://localhost:9999`) and read the answers; its list of allowed origins only adds to these.

MLflow's assistant is refused: its clients can run commands as the user of this server, and no setting turns it off.
"""

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

READING = ("GET", "HEAD", "OPTIONS")
# Anywhere in the path: a server can have a prefix before all of its own.
ASSISTANT = "/ajax-api/3.0/mlflow/assistant"
NOT_FROM_ELSEWHERE = "Refused: only this server's own pages may change something, and this request is another page's.\n"
NO_ASSISTANT = "Refused: MLflow's assistant is off here.\n"


def app() -> ASGIApp:
    """Build the application that `mlflow server` serves."""
    # Imported here: `mlflow server` imports this module too, and only its child serves.
    from mlflow.server.fastapi_app import app as mlflow_app

    return SameOriginMiddleware(mlflow_app)


class SameOriginMiddleware:
    """ASGI middleware that refuses the assistant and writes from other origins, whose reads get no CORS headers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle an ASGI request."""
        headers = scope.get("headers", ())
        # Only browsers send an origin. MLflow checks that the host is this server's own.
        own = {b"http://" + value for name, value in headers if name == b"host"}
        is_foreign = any(name == b"origin" and value not in own for name, value in headers)
        if scope["type"] == "http" and ASSISTANT in scope["path"]:
            await PlainTextResponse(NO_ASSISTANT, status_code=403)(scope, receive, send)
        elif scope["type"] != "http" or not is_foreign:
            await self._app(scope, receive, send)
        elif scope["method"] in READING:
            # Without an origin MLflow's answer does not allow the page to see it, so the browser withholds it.
            without = [(name, value) for name, value in headers if name != b"origin"]
            await self._app({**scope, "headers": without}, receive, send)
        else:
            await PlainTextResponse(NOT_FROM_ELSEWHERE, status_code=403)(scope, receive, send)
