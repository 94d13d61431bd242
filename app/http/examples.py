"""Request bodies that the document shows. Each runs as it stands, once its ids are those of a server's own things: the
dataset has the columns text, label, country and split, and the alias `production` stands for a model trained on it.

A test sends every one of them.
"""

from typing import Any, TypeAlias

Examples: TypeAlias = dict[str, Any]

DATASET_ID = "ds_019a8f3c2b7e5f0a1b2c3d4e5f60718"
MODEL_ID = "mdl_019a8f3c2b7e5f0a1b2c3d4e5f60718"


def _of(summary: str, body: dict[str, Any]) -> dict[str, Any]:
    return {"summary": summary, "value": body}


JOBS: Examples = {
    "least": _of("The least: everything by default", {"dataset": DATASET_ID}),
    "focal": _of(
        "A focal loss, which gives more weight to what is hard to tell",
        {
            "name": "support-intents",
            "dataset": DATASET_ID,
            "loss": {"type": "focal", "gamma": 2.0},
            "training": {"epochs": 3, "batch_size": 32},
        },
    ),
    "frozen": _of(
        "Seconds instead of minutes: a layer over an encoder that stays as it is",
        {
            "dataset": DATASET_ID,
            "tuning": "frozen",
            "loss": {"type": "cross_entropy", "class_weights": "balanced"},
            "training": {"epochs": 30, "optimizer": {"type": "adamw", "learning_rate": 0.01}},
        },
    ),
    "several losses": _of(
        "Two terms, the second with a weight that falls over training",
        {
            "dataset": DATASET_ID,
            "loss": {
                "terms": [
                    {"loss": "cross_entropy"},
                    {"loss": "supcon", "weight": {"schedule": "cosine", "from": 1.0, "to": 0.0}},
                ]
            },
        },
    ),
    "learned weights": _of(
        "Two terms whose weights are learned from their gradients",
        {
            "dataset": DATASET_ID,
            "loss": {
                "terms": [{"loss": {"type": "focal", "gamma": 1.0}}, {"loss": "r_drop", "weight": 0.5}],
                "combine": {"type": "gradnorm", "alpha": 1.5},
            },
        },
    ),
    "further": _of(
        "Train a model of yours further, for another while",
        {
            "dataset": DATASET_ID,
            "model": MODEL_ID,
            "training": {"epochs": 1, "max_length": 64},
            "metadata": {"team": "nlp"},
        },
    ),
}

COMPARISONS: Examples = {
    "seeds": _of(
        "Does a focal loss help?",
        {
            "name": "does focal help?",
            "dataset": DATASET_ID,
            "losses": ["cross_entropy", {"type": "focal", "gamma": 2.0}],
            "metric": "macro_f1",
            "seeds": 5,
            "tuning": "frozen",
        },
    ),
    "folds": _of(
        "How good is it? A cross-validation",
        {
            "name": "how good is it?",
            "dataset": DATASET_ID,
            "losses": ["cross_entropy"],
            "folds": 5,
            "tuning": "frozen",
        },
    ),
}

PREDICTIONS: Examples = {
    "one text": _of("One text", {"model": MODEL_ID, "input": "Where is my parcel?"}),
    "several": _of(
        "Several, by an alias", {"model": "production", "input": ["Where is my parcel?", "I want a refund."]}
    ),
    "abstain": _of(
        "The three likeliest labels, or none where it is not sure",
        {"model": "production", "input": "Where is my parcel?", "top_k": 3, "abstain_below": 0.5},
    ),
    "long": _of(
        "A long text, read in windows",
        {"model": "production", "input": "Where is my parcel?", "windows": {"pooling": "mean", "overlap": 4}},
    ),
    "explain": _of("What each word adds", {"model": "production", "input": "Where is my parcel?", "explain": True}),
}

PREDICTION_BATCHES: Examples = {"batch": _of("Every row", {"model": "production", "dataset": DATASET_ID})}

EVALUATIONS: Examples = {
    "least": _of("Every row", {"model": MODEL_ID, "dataset": DATASET_ID}),
    "by group": _of(
        "The test rows, by country, and with careless writing",
        {
            "model": "production",
            "dataset": DATASET_ID,
            "part": "test",
            "group_column": "country",
            "perturbations": ["typo", "case", "whitespace"],
        },
    ),
}

ALIASES: Examples = {"model": _of("By the model's id", {"model": MODEL_ID})}

KEYS: Examples = {
    "predictions": _of(
        "Predictions alone, for three months",
        {"name": "support-frontend", "scopes": ["predict"], "expires_in_days": 90},
    ),
    "trainings": _of(
        "Uploads and jobs, at most ten calls a second",
        {"name": "nightly-training", "scopes": ["datasets", "jobs"], "limits": {"requests_per_minute": 600}},
    ),
}
ROTATIONS: Examples = {"an hour": _of("The old secret works for another hour", {"overlap_seconds": 3600})}
_LIMITS = {"live_jobs": 20, "stored_bytes": 50_000_000_000, "requests_per_minute": 1_200}
PROJECTS: Examples = {
    "plain": _of("With the server's own limits", {"name": "support"}),
    "limited": _of("With limits of its own", {"name": "support", "limits": _LIMITS}),
}
PROJECT_CHANGES: Examples = {
    "limits": _of("Other limits", {"limits": _LIMITS}),
    "no limit": _of("No limit on uploads, whatever the server's own", {"limits": {"upload_bytes_per_day": None}}),
}

_CSV = "text,label\nWhere is my parcel?,delivery\nI want my money back,refund\nI cannot log in,account\n"

DATASETS: Examples = {
    "by name": _of("Columns known by their names", {"file": _CSV}),
    "by role": _of(
        "Columns that are called otherwise, and notes of your own",
        {
            "file": _CSV.replace("text,label", "body,intent"),
            "name": "support",
            "columns": '{"text": "body", "label": "intent"}',
            "metadata": '{"team": "nlp"}',
        },
    ),
}
