"""One Settings class, read from `MINIMAND_*` variables once per process and passed in."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.base_models.hub import HubModel
from app.limits.schemas import Limits
from app.predictions.schemas import MAX_TEXTS

BaseSource = Annotated[
    HubModel | Path,
    BeforeValidator(lambda given: (HubModel.parse(given) or given) if isinstance(given, str) else given),
]


class Settings(BaseSettings):
    """Everything an operator may set. Sizes are in bytes and times in seconds, as the names say."""

    model_config = SettingsConfigDict(env_prefix="MINIMAND_", extra="ignore", frozen=True)

    home: Path = Field(
        Path(".minimand"), description="Folder for the database, files, logs and the embedded broker (local disk)."
    )
    host: str = Field("127.0.0.1", description="Address the API binds to. Loopback unless you say otherwise.")
    port: int = Field(8000, ge=0, le=65535, description="Port of the API; 0 takes a free one.")

    database_url: str | None = Field(
        None, description="SQLAlchemy URL, e.g. postgresql+psycopg://user:secret@host/db. Default: SQLite in the home."
    )
    broker_url: str | None = Field(
        None, description="redis:// URL of Redis or Valkey. Default: an embedded Valkey that `minimand up` starts."
    )
    storage_url: str | None = Field(
        None, description="Where files live: a folder or any fsspec URL, e.g. s3://bucket/prefix. Default: in the home."
    )
    base_models: dict[str, BaseSource] = Field(
        default_factory=dict,
        description='Encoders by name, as JSON: {"bert-zh": "/models/bert-base-chinese"}, a folder; or '
        '{"bert-zh": "hf:google-bert/bert-base-chinese@COMMIT"}, which `minimand fetch` fetches. `minilm` is always '
        "there.",
    )

    max_body_bytes: int = Field(1_000_000, ge=1_000, description="Largest JSON body.")
    request_grace_seconds: float = Field(
        30, gt=0, description="How far a request may fall behind the rate below before it gets a 408."
    )
    request_bytes_per_second: int = Field(
        2_000, ge=1, description="How slowly a request's bytes may come. What came faster before buys no time."
    )
    max_upload_bytes: int = Field(2_000_000_000, ge=1_000, description="Largest upload, as sent.")
    max_dataset_bytes: int = Field(8_000_000_000, ge=1_000, description="Largest upload after decompression.")
    max_dataset_rows: int = Field(10_000_000, ge=1, description="Most rows in a dataset.")
    parse_timeout_seconds: float = Field(600, gt=0, description="How long parsing one upload may take.")
    parse_memory_bytes: int = Field(2_000_000_000, ge=500_000_000, description="Address space of the parsing process.")

    min_free_bytes: int = Field(
        1_000_000_000, ge=0, description="Free disk space under the home below which /readyz calls it low."
    )

    lease_seconds: float = Field(60, gt=0, description="How long a worker owns a job without renewing its lease.")
    poll_seconds: float = Field(10, gt=0, description="How often an idle worker looks for work without being woken.")
    progress_timeout_seconds: float = Field(
        1800, gt=0, description="A trainer that reports nothing for this long is stopped and its job tried again."
    )
    stop_timeout_seconds: float = Field(
        60, gt=0, description="How long a trainer may take to write its last checkpoint when asked to stop."
    )
    max_attempts: int = Field(3, ge=1, description="Attempts without a new checkpoint before a job fails.")
    max_job_seconds: float = Field(
        7 * 86_400, gt=0, description="A job that has run for so long, in all its runs together, is stopped, and fails."
    )
    max_run_bytes: int = Field(
        50_000_000_000, ge=1_000_000, description="Disk that a running job may take under the home; more, and it fails."
    )
    keep_checkpoints: int = Field(2, ge=2, description="Newest checkpoints kept of each job.")
    checkpoint_days: float = Field(
        7, ge=0, description="Days after a job's end that its checkpoints are kept. Its model stays."
    )
    output_days: float = Field(
        30, ge=0, description="Days after its end that the files of a prediction batch or an evaluation are kept."
    )
    training_queue: str = Field("cpu", pattern="^(cpu|gpu)$", description="Queue new training jobs go to.")
    devices: str = Field(
        "auto", description="What a worker trains on: auto, cpu, or GPU numbers such as 0,1. One training slot each."
    )
    trainer_threads: int = Field(0, ge=0, description="Threads of a CPU trainer; 0 takes every core.")
    trainer_memory_bytes: int = Field(
        0, ge=0, description="Address space of a CPU trainer; 0 sets no limit. API and workers: the same."
    )
    training_cache_bytes: int = Field(
        10_000_000_000,
        ge=0,
        description="Tokens and encoded texts a worker keeps on disk for later jobs; those not used longest go first. "
        "0 keeps none.",
    )
    spare_trainers: bool = Field(
        True, description="Keep a trainer ready that has done its imports; it holds about 300 MB while it waits."
    )
    trainer_nice: int = Field(10, ge=0, le=19, description="How far a trainer on shared cores steps back (nice).")

    model_cache_bytes: int = Field(
        2_000_000_000,
        ge=0,
        description="Memory of the models the API keeps loaded, a shared encoder counted once; those not used longest "
        "go first. The newest stays even if it alone is larger.",
    )
    preload: list[str] = Field(
        default_factory=list,
        description="Models loaded before /readyz says that a process is ready, ids or aliases, as JSON: "
        '["production"].',
    )
    max_waiting_texts: int = Field(
        2048,
        ge=MAX_TEXTS,
        description="Texts that may wait for their model at one time; a call that would make it more gets a 429.",
    )
    answer_cache_bytes: int = Field(
        0, ge=0, description="Memory of answers kept, by model and tokens, for texts that come again; 0 keeps none."
    )
    inference_device: str = Field(
        "cpu",
        pattern=r"^(cpu|cuda(:\d+)?)$",
        description="What models answer on: cpu, by onnxruntime, or cuda (cuda:1, …), by torch in half precision.",
    )
    inference_threads: int = Field(
        0, ge=0, description="Passes through models at one time, or threads of one that is alone; 0: one a core."
    )
    default_limits: Limits = Field(
        default=Limits(requests_per_minute=6_000, live_jobs=1_000),
        description="Limits of each project that has none of its own, as JSON, e.g. "
        '{"requests_per_minute": 6000, "live_jobs": 1000}. '
        "Also predictions_per_minute, upload_bytes_per_day and stored_bytes; null, or left out: none.",
    )
    log_level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="Least level that is logged.")
    log_format: Literal["text", "json"] = Field("text", description="Lines for people, or a JSON object a line.")

    tracing_url: str | None = Field(
        None,
        description="OTLP over HTTP, e.g. http://collector:4318: spans of requests and of runs go there. Needs the "
        "`tracing` extra; OTEL_* variables set the rest.",
    )
    trusted_proxies: str = Field(
        "127.0.0.1,::1",
        description="Addresses or networks whose X-Forwarded-For and X-Forwarded-Proto are believed, by commas; * for "
        "all, where nothing but a proxy can reach the port.",
    )

    environment: Literal["production", "test"] = Field(
        "production", description="`test` allows what only tests of faults need: MINIMAND_CRASH_FILE."
    )
    crash_file: Path | None = Field(
        None, description="Names a point at which a process kills itself, once (ml/crash_points.py). Tests alone."
    )

    @field_validator("crash_file")
    @classmethod
    def _refuse_in_production(cls, file: Path | None, info: ValidationInfo) -> Path | None:
        if file is not None and info.data.get("environment") != "test":
            raise ValueError("it kills processes on purpose, so MINIMAND_ENVIRONMENT must be `test`. Unset it")
        return file

    @property
    def base_folders(self) -> dict[str, Path]:
        """Where each registered base model lies, or will once it was fetched."""
        return {
            name: source.folder_in(self.home.resolve()) if isinstance(source, HubModel) else source
            for name, source in self.base_models.items()
        }

    @property
    def resolved_database_url(self) -> str:
        """The database's URL, with the embedded default filled in."""
        return self.database_url or f"sqlite:///{self.home.resolve() / 'minimand.sqlite3'}"

    @property
    def resolved_storage_url(self) -> str:
        """The file store's URL, with the embedded default filled in."""
        return self.storage_url or str(self.home.resolve() / "files")

    @property
    def admin_key_path(self) -> Path:
        """Where the first admin key is written, readable by its owner alone."""
        return self.home.resolve() / "admin.key"

    @property
    def scratch(self) -> Path:
        """Local disk for uploads being parsed and runs being trained; never shared between hosts."""
        return self.home.resolve() / "scratch"

    @property
    def training_cache(self) -> Path:
        """Local disk for what one job computed and another can use."""
        return self.home.resolve() / "cache" / "training"
