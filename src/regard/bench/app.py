"""What a user of the app waits for: `python -m regard.bench.app`, through the real page in Chromium.

A start is a new process of `regard app`, from before it begins until the page can be used, and until it shows the first
heat maps, for which models are loaded and a picture is encoded. Questions are then asked about that picture by the
page's own button; the page's clock runs until new heat maps, and all answers, are drawn. Where other programs run
beside, waits are longer than the work: so the processor time of the app stands beside them.
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from regard.bench.browser import chromium
from regard.bench.results import Row, provenance, publish
from regard.errors import DataError

QUESTIONS = ("the rocket", "something to drink", "where is the helmet?", "a face", "where is the cup?", "the flag")
START = 120.0  # seconds until a start counts as failed
_ASKING = """async () => {
  const pictures = () => ['left', 'right'].map((id) => document.querySelector(`#${id} img`).src).join();
  const cards = () => document.querySelector('#answers').innerHTML;
  const before = [pictures(), cards()], start = performance.now(), waits = {};
  document.querySelector('#ask').click();
  while (!waits.maps || !waits.answers) {
    await new Promise((done) => requestAnimationFrame(done));
    if (!waits.maps && pictures() !== before[0]) waits.maps = performance.now() - start;
    if (waits.maps && !waits.answers && cards() !== before[1]) waits.answers = performance.now() - start;
  }
  return waits;
}"""


@contextmanager
def served() -> Iterator[tuple[str, float, int]]:
    """The app in a process of its own: its address, when it was started, and its number. Raises DataError."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    line = [sys.executable, "-m", "regard.cli", "app", "--port", str(port)]
    begun = time.perf_counter()
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            if not process.stdout.readline().startswith("Open http"):
                raise DataError("the app did not start: see `regard app`")
            yield f"http://127.0.0.1:{port}/", begun, process.pid
        finally:
            process.terminate()


def worked(process: int) -> float:
    """Processor time of all threads of a process since it began, in seconds."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def opened(browser: Any, address: str, begun: float, process: int) -> tuple[Any, dict[str, float]]:
    """The page, and seconds from `begun` until it can be used and until it shows the first maps and answers; "work":
    processor time of the app by the first of these.
    """
    page = browser.new_page()
    page.set_default_timeout(START * 1000)
    page.goto(address)
    page.locator("#ask").wait_for()
    seconds = {"ready": time.perf_counter() - begun, "work": worked(process)}
    page.locator("#left img").wait_for()
    seconds["maps"] = time.perf_counter() - begun
    page.locator("#answers .rg-card").first.wait_for()
    seconds["answers"] = time.perf_counter() - begun
    return page, seconds


def main() -> None:
    """Measure, and write results/app.json."""
    parser = argparse.ArgumentParser(description="What a user of the app waits for.")
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3, help="of the questions, after one that is not counted")
    chosen = parser.parse_args()
    made = provenance()
    starts, waits, work = [], [], 0.0
    with chromium() as browser:
        for turn in range(chosen.starts):
            with served() as (address, begun, process):
                page, seconds = opened(browser, address, begun, process)
                starts.append(seconds)
                if turn == chosen.starts - 1:
                    _asked(page)
                    before = worked(process)
                    waits = [wait for _ in range(chosen.rounds) for wait in _asked(page)]
                    work = (worked(process) - before) / len(waits)
                page.close()
    middle = {name: statistics.median(start[name] for start in starts) for name in starts[0]}
    asked = {name: statistics.median(wait[name] for wait in waits) for name in ("maps", "answers")}
    few, many = f"median of {len(starts)}", f"median of {len(waits)}"
    rows = [
        Row(f"from the start of the process to a page that can be used, {few}", middle["ready"], "s", "<= 6"),
        Row(f"processor time of the app until then, {few}", middle["work"], "s"),
        Row(f"from the start to the first heat maps: models loaded, picture encoded, {few}", middle["maps"], "s"),
        Row(f"from the start to the first answers, {few}", middle["answers"], "s"),
        Row(f"new question on the same picture: both heat maps drawn, {many}", asked["maps"], "ms", "<= 300"),
        Row(f"new question on the same picture: all three answers drawn, {many}", asked["answers"], "ms", "<= 300"),
        Row("processor time of the app for all of a new question, mean", work * 1e3, "ms"),
    ]
    notes = {
        "picture": "four photos, 1024 x 768, 768 tokens; 64 kept by relevance and by divprune",
        "starts": [{name: round(value, 2) for name, value in start.items()} for start in starts],
        "questions, ms": {name: [round(wait[name]) for wait in waits] for name in ("maps", "answers")},
        "load": f"{os.getloadavg()[2]:.1f} processes at work on average over the last quarter of an hour, on "
        f"{os.cpu_count()} cores, this one among them",
    }
    publish("app", "python -m regard.bench.app", rows, made, seed=0, notes=notes)


def _asked(page: Any) -> list[dict[str, float]]:
    """Milliseconds that each question took."""
    waits = []
    for question in QUESTIONS:
        page.get_by_label("Question", exact=True).fill(question)
        page.wait_for_timeout(300)
        waits.append(page.evaluate(_ASKING))
    return waits


if __name__ == "__main__":
    main()
