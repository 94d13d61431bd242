"""/docs, /redoc and what the OpenAPI document says first. The pages come from an installed package, not a CDN."""

from pathlib import Path

import fastapi_offline
from fastapi import FastAPI
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.staticfiles import StaticFiles
from starlette.responses import HTMLResponse

STATIC = "/static-docs"

DESCRIPTION = """
Labelled text in, a served classifier out; and the **loss** is a typed, checked part of the request.

1. **Upload** a CSV, TSV, JSONL or Parquet file: `POST /v1/datasets`.
2. **Submit** a job that names the dataset, a loss and how to train: `POST /v1/jobs`. A spec that cannot work is refused
   before it is queued, with a JSON pointer to what is wrong.
3. **Watch** it: `GET /v1/jobs/{id}/events`, as pages or as a stream.
   `POST /v1/comparisons` trains several losses on the same split and seeds, or on the same folds, and says which differ
   by more than chance; or cross-validates one.
4. **Predict** with the model it published: `POST /v1/predictions`; or for a whole dataset,
   `POST /v1/prediction_batches`. `POST /v1/evaluations` measures it on other data, by group and with changed texts.
   `PUT /v1/aliases/{name}` gives it a name of yours, which can be pointed at its successor while it is asked.

Every call but the health checks needs `Authorization: Bearer KEY`. The first key stands in `admin.key` of the home
folder; press **Authorize** to use it on this page. Every error has one shape,
`{"error": {message, type, param, code}}`, where `param` points at what was wrong. On any path, a request that comes too
slowly gets 408 (`request_too_slow`), and one whose line and headers have more than 64 kB gets 431 (`head_too_large`).
"""

TAGS = [
    {"name": "datasets", "description": "Labelled texts: uploaded once, normalised to Parquet, never changed."},
    {
        "name": "losses",
        "description": "What a job may minimise: each with its formula, paper, schema and an example that runs.",
    },
    {"name": "base models", "description": "The encoders a job may start from."},
    {"name": "jobs", "description": "Model + loss + training, queued, watched, cancelled; a checkpoint published."},
    {"name": "models", "description": "What a finished job leaves behind."},
    {"name": "aliases", "description": "Names that stand for a model, and are pointed at another without a pause."},
    {"name": "predictions", "description": "Texts in, labels and probabilities out."},
    {
        "name": "keys and projects",
        "description": "Who may do what, and how much of it: keys with scopes, projects that see nothing of each "
        "other, limits, and what was changed by whom.",
    },
    {"name": "health", "description": "For load balancers and supervisors, without a key; for Prometheus, with one."},
]


def install_docs(app: FastAPI) -> None:
    """Serve both pages and the files they load."""
    folder = Path(fastapi_offline.__file__).parent / "static"
    app.mount(STATIC, StaticFiles(directory=folder), name="static-docs")
    favicon = f"{STATIC}/favicon.png"

    @app.get("/docs", include_in_schema=False)
    async def swagger() -> HTMLResponse:
        page = get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="Minimand API",
            swagger_js_url=f"{STATIC}/swagger-ui-bundle.js",
            swagger_css_url=f"{STATIC}/swagger-ui.css",
            swagger_favicon_url=favicon,
            swagger_ui_parameters={
                "persistAuthorization": True,
                "docExpansion": "list",
                "tryItOutEnabled": True,
                "defaultModelsExpandDepth": 0,  # two hundred classes, under a heading that opens
            },
        )
        return _from_here_alone(page)

    @app.get("/redoc", include_in_schema=False)
    async def redoc() -> HTMLResponse:
        page = get_redoc_html(
            openapi_url="/openapi.json",
            title="Minimand API",
            redoc_js_url=f"{STATIC}/redoc.standalone.js",
            redoc_favicon_url=favicon,
            with_google_fonts=False,
        )
        return _from_here_alone(page)


def _from_here_alone(page: HTMLResponse) -> HTMLResponse:
    """Let a browser load nothing from elsewhere: ReDoc would fetch its maker's logo, and does without."""
    page.headers["Content-Security-Policy"] = "default-src 'self' 'unsafe-inline' data: blob:"
    return page
