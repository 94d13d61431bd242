"""What every route shares: errors, authentication, pages, documentation, health."""

import app.http.path_ids  # noqa: F401 - before any route is made
