"""transformers' pipeline behind FastAPI, as people write it: `python pipeline_server.py FOLDER PORT MAX_LENGTH`."""

import sys
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import pipeline

folder, port, max_length = sys.argv[1:]
classify = pipeline("text-classification", model=folder, device="cpu")
app = FastAPI()


class Texts(BaseModel):
    """A request."""

    input: list[str]


@app.post("/classify")
def answer(texts: Texts) -> dict[str, Any]:
    """The label of each text and its probability."""
    return {"results": classify(texts.input, batch_size=32, truncation=True, max_length=int(max_length))}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(port), loop="uvloop", http="httptools", log_level="warning")
