"""Ids in paths, typed by their prefix as in `/{job_id:job}`: so the router knows a job from /v1/jobs/validate, and
answers 405 to a GET of what only POST does. A model's is not among them: an alias may stand in its place.
"""

from starlette.convertors import StringConvertor, register_url_convertor

# By the name of the parameter. A prefix, see app.ids, is the type's name as well.
PREFIXES = {"dataset_id": "ds", "job_id": "job", "checkpoint_id": "ckpt", "key_id": "key", "project_id": "proj"}


def id_pattern(prefix: str) -> str:
    """The regular expression of such ids."""
    return f"{prefix}_[^/]+"


for _prefix in PREFIXES.values():
    _convertor = type(f"{_prefix}_id", (StringConvertor,), {"regex": id_pattern(_prefix)})
    register_url_convertor(_prefix, _convertor())
