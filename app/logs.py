"""Log records as lines of text or of JSON, each saying what it is about: a job and its fence, or a request.

What a record is about is kept in the context it is logged in, so those who log need not name it. Nothing of what a
user sent is logged: neither texts nor what exceptions say of them. Passwords in URLs are hidden, whoever logs them:
drivers put the address of a server that is away into their messages.
"""

import json
import logging
import re
import traceback
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType

from app.settings import Settings

_USERINFO = re.compile(r"(://[^:/@\s]*):[^\s]*@")
_SECRET_PARAMETER = re.compile(r"(?i)([?&;][^=&\s]*(?:pass|secret|token|key)[^=&\s]*)=[^&\s]*")

Fields = dict[str, str | int]
ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]

_about: ContextVar[Fields] = ContextVar("log_about")


def log_about(**fields: str | int) -> None:
    """From here on, records of this context carry these fields. A context ends with its task, or its `Context.run`."""
    _about.set({**_about.get({}), **fields})


def configure_logging(settings: Settings) -> None:
    """Send this process's records to standard error, as the settings say."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else TextFormatter())
    logging.basicConfig(level=settings.log_level, handlers=[handler])
    if settings.log_level != "DEBUG":
        # They tell the story of every start, which we tell in a line of our own.
        for talkative in ("alembic", "uvicorn"):
            logging.getLogger(talkative).setLevel(logging.WARNING)


class DiscreetFormatter(logging.Formatter):
    """Tells where an exception was and of what kind, not its message: that may quote a user's text, or a password."""

    def formatException(self, ei: ExcInfo) -> str:  # noqa: N802 - the library's name
        """Frames and kinds, from the first cause to what came of it."""
        lines: list[str] = []
        error = ei[1]
        while error is not None:
            frames = traceback.format_list(traceback.extract_tb(error.__traceback__))
            lines[:0] = [*frames, f"{type(error).__module__}.{type(error).__qualname__}\n"]
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        return "".join(lines).rstrip()


class TextFormatter(DiscreetFormatter):
    """For people: `TIME LEVEL LOGGER field=value …: MESSAGE`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s%(about)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """The line, and below it the traceback of an exception."""
        record.about = "".join(f" {name}={value}" for name, value in _about.get({}).items())
        return redact_url(super().format(record))


class JsonFormatter(DiscreetFormatter):
    """For programs: an object a line, with `time` in ISO 8601 and a traceback under `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": redact_url(record.getMessage()),
            **_about.get({}),
        }
        if record.exc_info:
            line["exception"] = redact_url(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False)


def redact_url(text: str) -> str:
    """The text with the passwords of any URL in it hidden; where that is unclear, more than the password is."""
    return _SECRET_PARAMETER.sub(r"\1=***", _USERINFO.sub(r"\1:***@", text))
