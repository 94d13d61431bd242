"""How fast an upload is read, and in how much memory, against Python's own csv.reader over the same file.

The two take turns, three times; the median of each counts, so a busy machine slows both.
"""

import csv
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

FILE_BYTES = 100_000_000
REPEATS = 3
MEMORY_BYTES = 2_000_000_000
RESULTS = Path(__file__).parent / "results" / "uploads.json"

# A child that does nothing but load what the parser loads: the memory it starts with.
IDLE = "import ml.data.ingest"
PLAIN = "import csv, sys\nwith open(sys.argv[1], newline='') as file:\n    for row in csv.reader(file): pass"


@dataclass(frozen=True)
class Run:
    """One child process, from start to end."""

    seconds: float
    peak_bytes: int


def write_csv(path: Path, size: int, seed: int) -> int:
    """Write random words with a label; return the number of rows."""
    draw = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 10))) for _ in range(20_000)]
    rows = 0
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "label"])
        while file.tell() < size:
            for _ in range(1_000):
                text = " ".join(draw.choices(words, k=draw.randint(5, 25)))
                writer.writerow([rows, text, f"label_{draw.randrange(10)}"])
                rows += 1
    return rows


def run_child(arguments: list[str]) -> Run:
    """Run Python with these arguments; its peak is the most memory it held (resident)."""
    # As the service starts its parser.
    environment = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system", "OPENBLAS_NUM_THREADS": "1"}
    started = time.perf_counter()
    child = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, env=environment)
    _pid, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - started
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise RuntimeError(f"{arguments} ended with {child.returncode}")
    return Run(seconds, usage.ru_maxrss * 1024)


def measure() -> dict[str, object]:
    """Ingest and plainly read one file in turns."""
    with tempfile.TemporaryDirectory() as folder:
        source, destination = Path(folder) / "words.csv", Path(folder) / "words.parquet"
        rows = write_csv(source, FILE_BYTES, seed=17)
        size = source.stat().st_size
        options = json.dumps({"memory_bytes": MEMORY_BYTES})
        idle = run_child(["-c", IDLE])
        plain, ingest = [], []
        for _ in range(REPEATS):
            plain.append(run_child(["-c", PLAIN, str(source)]))
            ingest.append(run_child(["-m", "ml.data.ingest", str(source), str(destination), options]))
        stored = destination.stat().st_size
    plain_seconds = statistics.median(run.seconds for run in plain)
    ingest_seconds = statistics.median(run.seconds for run in ingest)
    peak = max(run.peak_bytes for run in ingest)
    return {
        "file_bytes": size,
        "rows": rows,
        "stored_bytes": stored,
        "plain_megabytes_per_second": size / 1e6 / plain_seconds,
        "ingest_megabytes_per_second": size / 1e6 / ingest_seconds,
        "ingest_to_plain_speed": plain_seconds / ingest_seconds,
        "idle_peak_bytes": idle.peak_bytes,
        "ingest_peak_bytes": peak,
        "memory_growth_bytes": peak - idle.peak_bytes,
        "runs": {"plain": [asdict(run) for run in plain], "ingest": [asdict(run) for run in ingest]},
    }


def show(result: dict[str, object]) -> None:
    """Print the table."""
    figures = {name: value for name, value in result.items() if isinstance(value, int | float)}
    megabytes = {name: value / 1e6 for name, value in figures.items() if name.endswith("_bytes")}
    print(f"{figures['rows']:,} rows, {megabytes['file_bytes']:.0f} MB of CSV, {REPEATS} runs each, medians\n")
    print(f"{'':28}{'measured':>14}{'target':>12}")
    print(f"{'csv.reader alone':28}{figures['plain_megabytes_per_second']:>9.1f} MB/s")
    print(f"{'ingest, start to end':28}{figures['ingest_megabytes_per_second']:>9.1f} MB/s{'≥ 30':>12}")
    print(f"{'ingest / csv.reader':28}{figures['ingest_to_plain_speed']:>14.2f}")
    print(f"{'peak memory':28}{megabytes['ingest_peak_bytes']:>11.0f} MB")
    print(f"{'  above an idle parser':28}{megabytes['memory_growth_bytes']:>11.0f} MB{'≤ 100':>12}")
    print(f"{'stored Parquet':28}{megabytes['stored_bytes']:>11.0f} MB")


def main() -> None:
    """Measure, print and write down."""
    result = measure()
    show(result)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\nwritten to {RESULTS.relative_to(Path(__file__).parents[1])}")


if __name__ == "__main__":
    main()
