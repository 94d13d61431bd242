"""The application with what the document's examples name: a dataset of four columns, and a model behind an alias."""

import csv
import io
import itertools
from typing import Any

from tests.app.jobs.bulk_house import BulkHouse
from tests.service import tickets, upload


class ExampleHouse(BulkHouse):
    """A dataset and a model as the examples mean them."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        table = io.StringIO()
        writer = csv.writer(table)
        writer.writerow(["text", "label", "country", "split"])
        kinds = itertools.cycle([("at", "train"), ("be", "train"), ("at", "test"), ("be", "validation")])
        for row, kind in zip(list(csv.reader(io.StringIO(tickets(90).decode())))[1:], kinds, strict=False):
            writer.writerow([*row, *kind])
        self.described = upload(self.client, table.getvalue().encode())
        self.client.put("/v1/aliases/production", json={"model": self.model}).raise_for_status()
