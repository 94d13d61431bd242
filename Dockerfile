# One image; the command picks the role: api, worker, inference, migrate.
FROM python:3.11-slim

# torch comes first and by itself: a later, looser requirement then finds it already there and pulls nothing else.
# TORCH_INDEX_URL chooses the build: a CPU or a CUDA index; empty takes the default one.
ARG TORCH=torch==2.13.0
ARG TORCH_INDEX_URL=
RUN pip install --no-cache-dir ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} "$TORCH"

WORKDIR /src
COPY pyproject.toml README.md ./
COPY app app
COPY ml ml
COPY workers workers
COPY migrations migrations
RUN pip install --no-cache-dir '.[postgres,s3,tracing]'

# /data is a container's own home (scratch, and for migrate the admin key); /files is where a shared store is mounted.
# Both belong to the service's user here, and a new volume takes that over.
RUN useradd --create-home --uid 10001 minimand \
    && install --directory --owner=minimand --group=minimand --mode=700 /data /files
USER minimand
WORKDIR /data
ENV MINIMAND_HOME=/data PYTHONUNBUFFERED=1
VOLUME /data
EXPOSE 8000

# For the roles that answer HTTP; compose switches it off for the others.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:' + os.environ.get('MINIMAND_PORT', '8000') + '/healthz', timeout=2)"]

ENTRYPOINT ["minimand"]
CMD ["api"]
