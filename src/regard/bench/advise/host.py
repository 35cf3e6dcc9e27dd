"""What seeing takes on the asked device, in the model that is asked about: encoder, prompt, memory.

The encoder reads an image in windows of its side, each on its own, and their tokens are one grid. One window and its
prompt were measured on a CPU; other sizes and models take as long as their multiply-accumulates at the speed that was
reached there. A GPU that nobody has measured is taken by its roofline: the slower of its products of matrices, at the
share of them that self-attention reached on the CPU, and of reading the weights once.
"""

import statistics
from dataclasses import dataclass
from functools import cached_property

from regard.bench.advise.asked import Asked
from regard.bench.advise.models import MEASURED, MODELS, Model
from regard.bench.advise.sources import Figure, Kind, Results
from regard.errors import DataError

TEXT = 32  # tokens of the prompt's text, as in shorten.json
BYTES = {"cpu": 4, "gpu": 2}  # of a number
# NVIDIA A100 80GB SXM data sheet (2021): 312 TFLOPS of dense BF16, 2039 GB/s
A100 = {"matmul": 156e12, "copy": 2039e9}
DATA_SHEET = "NVIDIA A100 80GB SXM data sheet"


@dataclass(frozen=True)
class Host:
    """A device, a model, and what was measured. Its figures raise DataError where results lack what they need."""

    asked: Asked
    results: Results

    @property
    def model(self) -> Model:
        return MODELS[self.asked.model]

    @property
    def windows(self) -> int:
        return (-(-self.asked.resolution // self.model.vision.side)) ** 2

    @property
    def tokens(self) -> int:
        """Visual tokens of an image."""
        return self.windows * self.model.window

    @property
    def file(self) -> str | None:
        """What was measured on the asked device; None: nothing."""
        name = "shorten.json" if self.asked.device == "cpu" else "shorten-cuda.json"
        return name if self.results.has(name) else None

    @cached_property
    def whole(self) -> float:
        """Seconds of the prompt of one window, as measured."""
        return self.results.must(self.file or "shorten.json", "prefill of the whole prompt") / 1e3

    def encode(self) -> Figure:
        """Seconds until all windows of the batch are encoded."""
        macs, count = self.model.encoder.macs * self.windows * self.asked.batch, self.windows * self.asked.batch
        row = "encoding the image / prefill of the whole prompt"
        reference = MODELS[MEASURED].encoder.macs
        took = self.results.must(self.file or "shorten.json", row) * self.whole
        same = self.asked.model == MEASURED and count == 1
        return self._spent("encode", macs, reference / took, row, same, self.model.params)

    def prefill(self, tokens: int) -> Figure:
        """Seconds to read prompts of so many visual tokens and say the first word."""
        macs = self.model.language.prefill_macs(tokens + TEXT) * self.asked.batch
        measured = MODELS[MEASURED]
        rate = measured.language.prefill_macs(measured.window + TEXT) / self.whole
        same = self.asked.model == MEASURED and tokens == measured.window and self.asked.batch == 1
        return self._spent("read the prompt", macs, rate, "prefill of the whole prompt", same, self.model.params)

    def _spent(self, of: str, macs: int, rate: float, row: str, same: bool, weights: int) -> Figure:
        """rate: multiply-accumulates a second that were reached where it was measured."""
        if self.file:
            kind: Kind = "measured" if same else "extrapolated"
            how = "" if same else f", by {macs / 1e9:.4g} G MACs of the cost model"
            return Figure(of, macs / rate, "s", f"results/{self.file}: {row}{how}", kind)
        speed, source = self.speeds, self.speed_source
        products, reading = macs / (speed["matmul"] * self.share), weights * BYTES["gpu"] / speed["copy"]
        slower = f"{self.share:.0%} of its products" if products >= reading else "reading the weights once"
        return Figure(of, max(products, reading), "s", f"roofline of {source}: {slower}", "extrapolated")

    @cached_property
    def share(self) -> float:
        """Of the CPU's products of matrices, what self-attention reached: the median over the matrix's cells."""
        cells = [row for row in self.results.cells() if row["mechanism"] == "self-attention"]
        if not cells:
            raise DataError("results/matrix.jsonl has no cell of self-attention: run regard bench matrix")
        return statistics.median(row["macs"] * row["batch"] / row["seconds"] / row["matmul"] for row in cells)

    @cached_property
    def speeds(self) -> dict[str, float]:
        """Of the GPU: multiply-accumulates and bytes a second."""
        return self._speeds("matrix-cuda.jsonl") if self.results.has("matrix-cuda.jsonl") else A100

    @property
    def speed_source(self) -> str:
        measured = "the GPU of results/matrix-cuda.jsonl, float32"
        return measured if self.results.has("matrix-cuda.jsonl") else DATA_SHEET

    def _speeds(self, file: str) -> dict[str, float]:
        rows = self.results.cells(file)
        if not rows:
            raise DataError(f"results/{file} has no cell that was timed: run regard bench matrix")
        return {name: statistics.median(row[name] for row in rows) for name in ("matmul", "copy")}

    @cached_property
    def faster(self) -> float:
        """How many times as fast as the CPU the asked device multiplies matrices."""
        if self.asked.device == "cpu":
            return 1.0
        return self.speeds["matmul"] / self._speeds("matrix.jsonl")["matmul"]

    def memory(self, tokens: int) -> Figure:
        """Bytes of weights, cache and activations, with attention by a fused kernel."""
        language, batch = self.model.language, self.asked.batch
        prompt = [tokens + TEXT] * language.layers
        seen = self.model.encoder.peak * self.windows
        numbers = self.model.params + batch * (language.kv_cache(prompt) + max(seen, language.peak(prompt)))
        each = BYTES[self.asked.device]
        return Figure("memory", numbers * each, "bytes", f"regard.cost, {each} bytes a number", "cost model")
