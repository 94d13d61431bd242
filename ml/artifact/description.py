"""minimand.json: what a model is and how its scores are read. Serving reads it and never guesses."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ml.tasks.agreement import Agreement
from ml.tasks.base import Task
from ml.tasks.build import TaskState, build_task

DESCRIPTION = "minimand.json"
ONNX, INT8, HEAD, ADAPTER = "model.onnx", "model.int8.onnx", "head.safetensors", "adapter.safetensors"

# Fixed texts, of no user, that every artifact carries its answers to: lengths and scripts vary.
PROBE_TEXTS = (
    "ok",
    "The parcel came a day early and everything in it was intact.",
    "¿Dónde está mi pedido? Lo espero desde el lunes.",
    "订单还没有发货，请帮我查一下。",
    "Numbers: 3.14, 2,000 and 10^6; e-mail a@b.example; #tag 🙂",
    "a long line " * 60,
)


# Fixed texts, of no user, by which a shared encoder's int8 file is made: all heads over it find the same.
SCALING_TEXTS = (
    "need eta asap",
    "did my order go through? I never got a confirmation email",
    "pls confirm order recieved, i clicked twice and not sure",
    "Returned. Received by you. Not refunded. Fix it.",
    "I received only one of the two parcels, yet both are marked as delivered.",
    "What kind of bulb does the reading light use?",
    "Who wrote the first novel, and in which city was it printed in 1605?",
    "How many people live in Tokyo?",
    "a warm, funny and finely acted film that never loses its way",
    "the plot is a mess, and two hours of it are more than anyone can bear",
    "Stocks fell on Tuesday as oil passed $95 a barrel and the central bank held its rates.",
    "The home side won 3-1 after extra time; their keeper saved two penalties.",
    "WINNER!! You have been chosen for a £500 prize. Call 0800 555 0100 now to claim. T&Cs apply",
    "ok lol, see u at 8 then... bring the charger pls",
    "I can't believe she did that, I'm so happy for them!",
    "Researchers have found a protein that slows the growth of some tumours in mice.",
    "Dear Sir or Madam, I am writing with regard to invoice no. 4471-B of 3 March.",
    "def main(): return [x ** 2 for x in range(10)]",
    "¿Cuándo llega mi paquete? Ya han pasado dos semanas.",
    "Der Bildschirm flackert seit dem letzten Update, was kann ich tun?",
    "Je voudrais annuler ma commande et être remboursé.",
    "都一个星期了还没动静，你们到底发没发货啊！",
    "房间很干净，早餐一般，下次还会再来。",
    "荷物がまだ届きません。確認してください。",
    "Когда вернут деньги за билет?",
    "متى يصل طلبي؟",
    "환불은 언제 되나요?",
    "The committee, which had met three times since June without coming to an agreement, decided in the end to put the "
    "question to all members: should the library stay open on Sundays, and who is to pay for it if the town does not?",
)

# Raised when what is written of the same base changes: models keep the files they were judged with.
ENCODER_VERSION = 2
ADAPTABLE_VERSION = 1


def encoder_name(base_sha256: str) -> str:
    """What the folder of a shared encoder is called, wherever heads over it are served."""
    return f"{base_sha256}-{ENCODER_VERSION}"


def adaptable_name(base_sha256: str) -> str:
    """The same of a network that takes adapters."""
    return f"{base_sha256}-lora-{ADAPTABLE_VERSION}"


class Probe(BaseModel):
    """The trained network's answers to PROBE_TEXTS, in float32."""

    logits: list[list[float]]
    tolerance: float  # the largest difference a loaded model may show


class Serving(BaseModel):
    """How a model is served, and why so."""

    format: Literal["onnx-float32", "onnx-int8"] = Field(
        description="In both, an answer doesn't depend on its batch. It is what CPUs run; on a GPU "
        "(`MINIMAND_INFERENCE_DEVICE`) torch runs the float32 file of either."
    )
    reason: str
    agreement: Agreement | None = Field(default=None, description="Of int8 with float32, where they were compared.")
    float32_layers: list[str] = Field(default=[], description="Layers that int8 leaves in float32.")


class Source(BaseModel):
    """The checkpoint that an artifact was made of."""

    model_config = ConfigDict(extra="forbid")

    job_id: str
    checkpoint_id: str
    step: int


class Answering(BaseModel):
    """What answering from an artifact takes, without what only people read: a loaded model keeps this much of it."""

    format_version: Literal[1] = 1
    task: TaskState  # labels, how outputs are read, calibration, thresholds
    takes_pairs: bool  # whether it was trained on pairs of texts; else on single ones
    max_length: int
    pad_id: int
    inputs: list[str]  # of the ONNX file, in its order, without those that an adapter is for
    head: Literal["native", "linear", "cosine"]  # the latter two: over what a shared network makes of a text
    is_adapted: bool = False  # the shared network is given this model's adapter beside each text
    probe: Probe
    int8_probe: list[list[float]] | None = None  # the int8 file's own answers to PROBE_TEXTS
    serving: Serving

    def build_task(self) -> Task:
        """The task, which decodes outputs."""
        return build_task(self.task)


class Description(Answering):
    """What an artifact says of itself."""

    model_config = ConfigDict(extra="forbid")

    base_model: str
    base_sha256: str
    loads_in_transformers: bool
    head_name: str | None = None  # the last layer of an adapted model, as transformers calls it
    metrics: dict[str, dict[str, float]]
    report: dict[str, Any]
    spec: dict[str, Any]
    dataset_sha256: str | None
    source: Source | None = None  # none where a training ended by itself
    train_rows: int
    versions: dict[str, str]

    @property
    def shared_folder(self) -> str | None:
        """What the folder of the network is called that others are served over as well; None where none are."""
        if self.head == "native":
            return None
        return (adaptable_name if self.is_adapted else encoder_name)(self.base_sha256)


def read_answering(folder: Path) -> Answering:
    """Read what it takes to answer from an artifact."""
    return Answering.model_validate_json((folder / DESCRIPTION).read_bytes())


def read_description(folder: Path) -> Description:
    """Read an artifact's description."""
    return Description.model_validate_json((folder / DESCRIPTION).read_bytes())


def write_description(folder: Path, description: Description) -> None:
    """Write it."""
    text = json.dumps(description.model_dump(), indent=1, ensure_ascii=False)
    (folder / DESCRIPTION).write_text(text, encoding="utf-8")
