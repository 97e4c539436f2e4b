"""The table "which form to choose": accuracy, time, start, memory and file of each form."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tqdm import tqdm

from salience_detr.benchmark.forms import (
    FORMS,
    Form,
    Precision,
    Start,
    measure_precision,
    peak_bytes,
    size_on_disk,
    start_form,
    time_turn,
    write_file,
)
from salience_detr.benchmark.measurements import OURS, Settings, detector_label
from salience_detr.benchmark.report import Row, circumstances, short_cell, table
from salience_detr.benchmark.worker import Worker, run_until_stopped

MEBIBYTE = 2**20


@dataclass
class FormResult:
    """Results of a form; None for what was not measured.

    Attributes:
        start: in a new process, with an empty cache of the compiler.
        next_start: in another one, with what the first has left in the cache.
        milliseconds: of each call from an image in memory to its detections.
        peak_bytes: most memory of the process, start included.
        file_bytes: size of what the form is loaded from.
        precision: on the test set.
        failure: reason why results are missing.
    """

    form: Form
    start: Start | None = None
    next_start: Start | None = None
    milliseconds: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    file_bytes: int | None = None
    precision: Precision | None = None
    failure: str = ""


@dataclass
class FormTable:
    """Settings and results of the forms so far.

    Attributes:
        exports: folder of exported files, which gets those that are missing; None for one that is
            deleted afterwards.
        evaluates: measure AP on the test set.
        results: in the order of :data:`salience_detr.benchmark.forms.FORMS`.
        notes: sentences below the table.
    """

    settings: Settings
    exports: Path | None
    evaluates: bool
    results: list[FormResult] = field(default_factory=lambda: [FormResult(x) for x in FORMS])
    notes: list[str] = field(default_factory=list)

    def fastest(self, runtime: str, dtype: str) -> float | None:
        """Return the least milliseconds of a form, or None."""
        for result in self.results:
            if (result.form.runtime, result.form.dtype) == (runtime, dtype):
                return min(result.milliseconds, default=None)
        return None


def run(forms: FormTable, *, keep: Callable[[], None]) -> bool:
    """Measure all forms, and return False if it was interrupted.

    Args:
        forms: gets the results.
        keep: called whenever there are new ones, so that they are kept whatever comes.
    """
    with tempfile.TemporaryDirectory() as temporary:
        finished = run_until_stopped(lambda: measure_all(forms, Path(temporary), keep))
    if not finished:
        forms.notes.append("Stopped before all was measured.")
    return finished


def measure_all(forms: FormTable, temporary: Path, keep: Callable[[], None]) -> None:
    """Measure all forms in turns: what disturbs the machine for a while disturbs each of them."""
    settings = forms.settings
    exports = forms.exports or temporary
    write_exports(forms, exports)

    # Compilers take no blanks in paths.
    caches = {result.form: temporary / f"cache{i}" for i, result in enumerate(forms.results)}

    # Each has a process, which stays, and one of them computes at a time.
    with ExitStack() as stack:
        workers = {}
        for result in progress(forms, "starts"):
            worker = stack.enter_context(Worker())
            workers[result.form] = worker
            start = worker.attempt(start_form, settings, result.form, exports, caches[result.form])
            if isinstance(start, str):
                result.failure = start
            else:
                result.start = start
            keep()

        for round_ in range(settings.warmup + settings.repeats):
            for result in progress(forms, f"round {round_ + 1}"):
                turn = workers[result.form].attempt(time_turn, settings, result.form, exports)
                if isinstance(turn, str):
                    result.failure = turn
                elif round_ >= settings.warmup:
                    result.milliseconds += turn
            keep()

        for result in progress(forms, "memory, files, AP"):
            measure_rest(forms, result, workers[result.form], exports)
            keep()

    # The processes are gone, and their memory with them.
    for result in progress(forms, "next starts"):
        with Worker() as worker:
            start = worker.attempt(start_form, settings, result.form, exports, caches[result.form])
        if isinstance(start, str):
            result.failure = start
        else:
            result.next_start = start


def progress(forms: FormTable, step: str) -> tqdm[FormResult]:
    """Return those of the results that have not failed, with a progress bar."""
    return tqdm([x for x in forms.results if not x.failure], desc=step, leave=False)


def write_exports(forms: FormTable, folder: Path) -> None:
    """Write the exported files that are missing; what fails is the failure of its forms."""
    with Worker() as worker:
        failures: dict[str, str] = {}
        for result in progress(forms, "exports"):
            name = result.form.file
            if name is None:
                continue
            if name not in failures and not (folder / name).is_file():
                size = worker.attempt(write_file, forms.settings, folder / name)
                failures[name] = size if isinstance(size, str) else ""
            result.failure = failures.get(name, "")


def measure_rest(forms: FormTable, result: FormResult, worker: Worker, exports: Path) -> None:
    """Measure the memory of a form's process, its file, and its AP."""
    arguments = (forms.settings, result.form, exports)

    # The evaluation, which comes last, may take more memory.
    peak = worker.attempt(peak_bytes, *arguments)
    size = worker.attempt(size_on_disk, *arguments)
    if isinstance(peak, str):
        result.failure = peak
        return
    if isinstance(size, str):
        result.failure = size
        return
    result.peak_bytes = peak
    result.file_bytes = size

    if forms.evaluates:
        precision = worker.attempt(measure_precision, *arguments)
        if isinstance(precision, str):
            result.failure = f"AP: {precision}"
        else:
            result.precision = precision


def form_rows(forms: FormTable) -> list[Row]:
    """Return a row for each form; columns of AP and of remarks only if there are any."""
    eager = forms.fastest("eager", "float32")
    rows = []
    for result in forms.results:
        row: Row = {"form": result.form.runtime, "dtype": result.form.dtype}
        if forms.evaluates:
            row["AP"] = result.precision and result.precision.ap
            row["AP50"] = result.precision and result.precision.ap50
        row |= time_cells(result, eager)
        row["memory (MiB)"] = taken_mebibytes(result)
        row["file (MiB)"] = result.file_bytes and result.file_bytes / MEBIBYTE
        row["remarks"] = short_cell(result.failure)
        rows.append(row)

    if not any(row["remarks"] for row in rows):
        for row in rows:
            del row["remarks"]
    return rows


def taken_mebibytes(result: FormResult) -> float | None:
    """Return the peak of a form's memory without what its process had before, or None."""
    if result.peak_bytes is None or result.start is None or result.start.empty_bytes is None:
        return None
    return (result.peak_bytes - result.start.empty_bytes) / MEBIBYTE


def time_cells(result: FormResult, eager: float | None) -> Row:
    """Return the cells of calls and starts.

    Args:
        eager: least milliseconds of the eager model in float32, None if they are unknown.
    """
    row: Row = {"minimum (ms)": None, "median (ms)": None, "of eager": None}
    if result.milliseconds:
        row["minimum (ms)"] = min(result.milliseconds)
        row["median (ms)"] = statistics.median(result.milliseconds)
        row["of eager"] = eager and min(result.milliseconds) / eager

    row["first start (s)"] = result.start and result.start.seconds
    row["next start (s)"] = result.next_start and result.next_start.seconds
    return row


def explanations(forms: FormTable) -> list[str]:
    """Return explanations of the table, a line each."""
    lines = [
        "Milliseconds: a whole call of a detector, from an image of noise in memory to detections; "
        "each form in a process of its own, in turns. of eager: of the minima, to float32.",
        "Starts: from loading to the first detection, in a new process; the first with an empty "
        "cache of the compiler, the next one with what the first has left there.",
    ]

    empty = [x.start.empty_bytes for x in forms.results if x.start and x.start.empty_bytes]
    memory = "memory: peak of the process, start and compilation included, above what it has before"
    if empty:
        memory += f" (Python and the packages of this project: {min(empty) / MEBIBYTE:.0f} MiB)"
    lines.append(f"{memory}.")

    if forms.settings.weights is None:
        lines.append("file: of the PyTorch forms, whose weights are random, the weights in memory.")
    if forms.evaluates:
        side = min(forms.settings.size)
        lines.append(f"AP: on the config's test set, shorter sides resized to {side} pixels.")
    return lines + forms.notes


def as_markdown(forms: FormTable) -> str:
    """Return the table with its circumstances and explanations."""
    title = detector_label(forms.settings, OURS)
    head = "; ".join([title, *form_circumstances(forms).values()])
    lines = "\n".join(f"- {line}" for line in explanations(forms))
    return f"{head}\n\n{table(form_rows(forms))}\n\n{lines}\n"


def form_circumstances(forms: FormTable) -> dict[str, str]:
    """Return the machine, packages, settings and date, in words."""
    facts = circumstances(forms.settings)
    del facts["dtype"]  # a column
    facts["calls"] = (
        f"timed turns: {forms.settings.repeats}, after {forms.settings.warmup} to warm up"
    )
    return facts


def as_json(forms: FormTable) -> str:
    """Return all results, the milliseconds of each call included."""
    results = []
    for result in forms.results:
        entry = asdict(result)
        entry["start"] = result.start and result.start._asdict()
        entry["next_start"] = result.next_start and result.next_start._asdict()
        entry["precision"] = result.precision and result.precision._asdict()
        results.append(entry)

    content = {
        "circumstances": form_circumstances(forms),
        "settings": asdict(forms.settings),
        "forms": results,
        "notes": explanations(forms),
    }
    return json.dumps(content, indent=1) + "\n"
