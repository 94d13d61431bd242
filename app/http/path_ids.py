"""Ids in paths, typed by their prefix as in `/{job_id:job}`: so the router knows a job from /v1/jobs/validate, and
answers 405 to a GET of what only POST does.
"""

from starlette.convertors import StringConvertor, register_url_convertor

for _prefix in ("ds", "job", "ckpt", "key", "proj"):  # see app.ids
    _convertor = type(f"{_prefix}_id", (StringConvertor,), {"regex": f"{_prefix}_[^/]+"})
    register_url_convertor(_prefix, _convertor())
