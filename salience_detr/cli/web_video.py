"""Detection on a video that was dropped on the web page."""

from __future__ import annotations

import html
import shutil
import tempfile
import time
from pathlib import Path

from torch import Tensor

from salience_detr.detections import Detections
from salience_detr.detector import Detector
from salience_detr.inference.detection_run import DetectionRun
from salience_detr.inference.inputs import is_video
from salience_detr.inference.outputs import OutputFolder
from salience_detr.inference.result_files import ResultFiles
from salience_detr.utils.drawing_options import DrawingOptions
from salience_detr.utils.signals import StopSignals

KEEP_SECONDS = 3600  # until uploads, drawings and the state of a visitor are deleted
PREFIX = "detections_"  # of the folders of drawings


class NamedResults(ResultFiles):
    """Result files that have the name of the file, not where the server keeps it."""

    def add(self, detections: Detections, file_name: str, frame: int | None = None) -> None:
        super().add(detections, Path(file_name).name, frame)


def detect_on_video(
    detector: Detector, source: Path, thresholds: Tensor, drawing: DrawingOptions
) -> tuple[str | None, str, list[str]]:
    """Detect on the frames of a video, and write its drawings and results beside it.

    Args:
        thresholds: (K,) lowest score of each class.

    Returns:
        The path of the video with the drawings, a summary as HTML, and the paths of the video and
        the result files to save. An error has no paths.
    """
    if not is_video(source):
        return None, alert(f"{source.name} is no video; drop images on the other tab"), []

    # The page copies what it shows; those of earlier visitors are no longer needed.
    uploads = source.parent.parent
    for earlier in uploads.glob(f"{PREFIX}*"):
        if time.time() - earlier.stat().st_mtime > KEEP_SECONDS:
            shutil.rmtree(earlier, ignore_errors=True)

    root = Path(tempfile.mkdtemp(prefix=PREFIX, dir=uploads))
    classes = detector.classes
    folder = OutputFolder(root, classes, salience=False, crops=False)
    results = NamedResults(classes, root / f"{source.stem}.json", root / f"{source.stem}.csv")
    run = DetectionRun(
        detector,
        folder,
        folder.plan([source]),
        results,
        StopSignals(),  # those of the program, in its main thread, end the page
        score_thresholds=thresholds,
        drawing=drawing,
        show_progress=False,
    )

    start = time.perf_counter()
    with results:
        summary = run.run([source])

    if summary.failures:
        message = "; ".join(summary.failures.values())
        return None, alert(message.replace(str(source), source.name)), []

    # Odd sizes change the ending of the video.
    written = sorted(str(file) for file in root.iterdir())
    video = next(file for file in written if is_video(Path(file)))
    text = (
        f"<b>{summary.num_detections} detections</b> on {summary.num_images} frames of "
        f"{html.escape(source.name)} ({time.perf_counter() - start:.1f} s)"
    )
    if summary.other_codecs:
        text += "<br>Browsers may not play the video: save it, or install H.264 for the page."
    return video, text, written


def alert(message: str) -> str:
    """Return an error message as HTML."""
    return f'<b role="alert">{html.escape(message)}</b>'
