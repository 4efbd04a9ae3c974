"""MLflow's server behind two more rules. `mlflow server --app-name fashion-study` starts this instead.

Only the server's own pages, and programs that are no pages, change anything: MLflow itself lets the pages of every
port of this machine write (`http://localhost:9999`), and read what it answers; its list of allowed origins only adds to
these.

Nobody asks MLflow's assistant: whoever reaches it can let it run commands as the user of this server, and no setting
turns it off.
"""

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

READING = ("GET", "HEAD", "OPTIONS")
# Wherever it is in the path: a server can have a prefix before all of its own.
ASSISTANT = "/ajax-api/3.0/mlflow/assistant"
NOT_FROM_ELSEWHERE = "Refused: only this server's own pages may change something, and this request is another page's.\n"
NO_ASSISTANT = "Refused: MLflow's assistant is off here.\n"


def app() -> ASGIApp:
    """Build what `mlflow server` serves."""
    # Imported here: `mlflow server` looks at this module too, and only its child serves.
    from mlflow.server.fastapi_app import app as mlflow_app

    return SameOriginMiddleware(mlflow_app)


class SameOriginMiddleware:
    """Refuse the assistant, and what another origin's page wants to write; let it read only as if no page had asked."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request as ASGI has it."""
        if scope["type"] == "http" and ASSISTANT in scope["path"]:
            await PlainTextResponse(NO_ASSISTANT, status_code=403)(scope, receive, send)
        elif scope["type"] != "http" or not _is_foreign(scope):
            await self._app(scope, receive, send)
        elif scope["method"] in READING:
            # Without the origin MLflow's answer does not say that the page may see it, and so the browser keeps it.
            headers = [(name, value) for name, value in scope["headers"] if name != b"origin"]
            await self._app({**scope, "headers": headers}, receive, send)
        else:
            await PlainTextResponse(NOT_FROM_ELSEWHERE, status_code=403)(scope, receive, send)


def _is_foreign(scope: Scope) -> bool:
    """Say whether a page of another origin asks; a browser says which it is, other programs do not."""
    # MLflow checks that the host is this server's own.
    own = {b"http://" + value for name, value in scope["headers"] if name == b"host"}
    return any(name == b"origin" and value not in own for name, value in scope["headers"])
