"""Detection on images, videos or a camera, which writes drawings and result files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import torch
from tqdm import tqdm

from salience_detr.data.depth import choose_from_files
from salience_detr.data.images import ImageReadError
from salience_detr.detections import Detections, is_confident
from salience_detr.detector import Detector, PredictorOutput
from salience_detr.inference.encoders import H264
from salience_detr.inference.inputs import ImageReader, LoadedImage, is_video
from salience_detr.inference.live import LiveSource, StreamReader
from salience_detr.inference.outputs import (
    AnnotatedVideo,
    OutputFolder,
    OutputPaths,
    draw_salience_map,
)
from salience_detr.inference.result_files import ResultFiles
from salience_detr.inference.tracking import Tracker
from salience_detr.inference.video import (
    LatestFrames,
    VideoError,
    VideoFrame,
    VideoReader,
    output_suffix,
    read_ahead,
)
from salience_detr.utils.drawing_options import DEFAULTS, DrawingOptions
from salience_detr.utils.errors import one_line
from salience_detr.utils.files import FileNameError
from salience_detr.utils.signals import StopSignals

T = TypeVar("T")

# Errors of a single input, for example of an image that is too large for the memory.
DETECTION_ERRORS = (RuntimeError, ValueError, MemoryError, cv2.error)

# A video is reported as broken off if fewer of its frames than this can be decoded.
COMPLETE = 0.9


class Ending(IntEnum):
    """End of a run; of several processes the highest counts."""

    DONE = 0
    CANNOT_WRITE = 1
    INTERRUPTED = 2


@dataclass
class Summary:
    """Summary of a run.

    Attributes:
        num_images: images and frames of videos that were detected on.
        num_detections: detections on all of them.
        num_completed: inputs that were completed.
        failures: reason why an input was skipped.
        warnings: a remark on an input that was processed.
        other_codecs: name of the codec of each written video that is not H.264.
        ending: how the run ended.
    """

    num_images: int = 0
    num_detections: int = 0
    num_completed: int = 0
    failures: dict[Path, str] = field(default_factory=dict)
    warnings: dict[Path, str] = field(default_factory=dict)
    other_codecs: dict[Path, str] = field(default_factory=dict)
    ending: Ending = Ending.DONE


@dataclass
class DetectionRun:
    """Detection on a list of inputs. An input that fails is noted and skipped.

    A drawing and its results are written together: a signal takes effect once both are complete.

    Attributes:
        detector: detector of objects.
        folder: folder of drawings, salience maps and crops.
        outputs: paths of the drawings of each input.
        files: result files, open.
        stop_signals: signals that may end the run.
        score_thresholds: (K,) threshold of each class; detections below it are neither drawn nor
            written.
        track: whether the objects of a video are numbered.
        drawing: lines, labels, filling and colors of the drawings.
        num_threads: threads that read images.
        show_progress: whether progress bars are shown.
    """

    detector: Detector
    folder: OutputFolder
    outputs: Mapping[Path, OutputPaths]
    files: ResultFiles
    stop_signals: StopSignals
    score_thresholds: torch.Tensor
    track: bool = False
    drawing: DrawingOptions = DEFAULTS
    num_threads: int = 2
    show_progress: bool = True
    summary: Summary = field(default_factory=Summary)

    def run(self, sources: Sequence[Path], *, live: LiveSource | None = None) -> Summary:
        """Detect on all inputs, or until a signal comes.

        Args:
            sources: images and videos; for a camera or stream, the name of its video. It may be
                empty.
            live: the camera or stream.
        """
        # An interruption or a full disk ends the run, but not the writing of its results.
        try:
            if live is None:
                self.process_files(sources)
            elif sources:
                self.process_live(sources[0], live)
        except KeyboardInterrupt:
            self.summary.ending = Ending.INTERRUPTED
        except OSError as error:
            self.summary.failures[sources[-1]] = str(error)
            self.summary.ending = Ending.CANNOT_WRITE

        # A second signal must not interrupt the writing of the results.
        self.stop_signals.ignore()
        return self.summary

    def process_files(self, sources: Sequence[Path]) -> None:
        """Detect on images and videos, in order."""
        # A single video has a bar of its frames instead.
        has_own_bar = len(sources) == 1 and is_video(sources[0])
        hidden = has_own_bar or not self.show_progress

        with tqdm(total=len(sources), unit="image", desc="detecting", disable=hidden) as bar:
            for are_videos, group in groupby(sources, key=is_video):
                process = self.process_videos if are_videos else self.process_images
                process(list(group), bar)

    def process_images(self, sources: Sequence[Path], bar: tqdm) -> None:
        """Detect on images."""
        # All processes choose the same range: they have the same outputs.
        value_range = self.detector.value_range
        choose_from_files(value_range, [str(x) for x in self.outputs if not is_video(x)])

        reader = ImageReader(
            sources,
            batch_size=self.detector.batch_size,
            num_threads=self.num_threads,
            value_range=value_range,
        )
        for batch in reader:
            self.process_batch(batch)
            bar.update(len(batch))

    def process_batch(self, batch: Sequence[LoadedImage]) -> None:
        """Detect on the images of a batch; note and skip those that cannot be used."""
        usable: list[tuple[Path, np.ndarray]] = []
        for loaded in batch:
            try:
                self.folder.check_names(self.outputs[loaded.path])
                usable.append((loaded.path, loaded.pixels()))
            except (ImageReadError, FileNameError) as error:
                self.summary.failures[loaded.path] = str(error)

        outputs = self.detect([image for _, image in usable])
        for (path, image), output in zip(usable, outputs, strict=True):
            with self.failures_noted(path):
                self.write_results(path, image, succeeded(output), self.outputs[path].write)

    def detect(self, images: Sequence[np.ndarray]) -> list[PredictorOutput | str]:
        """Return the output for each image, or the reason why there is none.

        A batch that fails is tried image by image.
        """
        try:
            return list(self.detector.stream(images))
        except DETECTION_ERRORS as error:
            if len(images) == 1:
                return [one_line(error)]

        # Outside of the handler, whose traceback would keep the tensors of the batch alive.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

        outputs: list[PredictorOutput | str] = []
        for image in images:
            outputs += self.detect([image])
        return outputs

    @contextmanager
    def failures_noted(self, source: Path) -> Iterator[None]:
        """Note that an input was completed, or why it was skipped."""
        try:
            yield
            self.summary.num_completed += 1
        except (VideoError, FileNameError) as error:
            self.summary.failures[source] = str(error)
        except DETECTION_ERRORS as error:
            self.summary.failures[source] = f"cannot detect on {source}: {one_line(error)}"

    def write_results(
        self,
        source: Path,
        image: np.ndarray,
        output: PredictorOutput,
        write: Callable[[Iterator[np.ndarray]], None],
        frame: int | None = None,
    ) -> None:
        """Write the drawings and detections of an image, or of a frame of a video.

        Args:
            source: path of the image or video.
            image: (H, W, 3) uint8 RGB.
            output: output of the detector.
            write: writes the drawing and, if there is one, the salience map.
            frame: number of the frame in the video.
        """
        confident = is_confident(output.detections, self.score_thresholds)
        detections = output.detections[confident]

        # A signal waits until the drawings agree with the results.
        with self.stop_signals.deferred():
            write(self.draw(image, detections, output.salience))
            if self.folder.crops:
                self.folder.write_crops(image, detections, self.outputs[source], frame)

            self.files.add(detections, str(source), frame)
            self.summary.num_images += 1
            self.summary.num_detections += len(detections)

    def draw(
        self, image: np.ndarray, detections: Detections, salience: np.ndarray
    ) -> Iterator[np.ndarray]:
        """Yield the drawing and, if it is wanted, the salience map."""
        yield detections.draw(image, options=self.drawing)
        if self.folder.salience:
            yield draw_salience_map(image, salience)

    def process_videos(self, sources: Sequence[Path], bar: tqdm) -> None:
        """Detect on videos."""
        for source in sources:
            with self.failures_noted(source):
                self.process_video(source)
            bar.update()

    def process_video(self, source: Path) -> None:
        """Detect on all frames of a video; an interruption keeps the frames written so far."""
        batch_size = self.detector.batch_size

        with (
            closing(VideoReader(source)) as reader,
            closing(read_ahead(reader.placed(), 2 * batch_size)) as frames,
        ):
            count = self.process_frames(source, reader, frames, batch_size)

        # The number in a file's header is only an estimate, and so may be the duration.
        is_short = reader.num_frames and count < COMPLETE * reader.num_frames
        if is_short and not reader.timeline.reaches(COMPLETE):
            self.summary.warnings[source] = (
                f"the video {source} breaks off: "
                f"of {reader.num_frames} frames {count} can be decoded"
            )

    def process_live(self, source: Path, live: LiveSource) -> None:
        """Detect on the newest frame of a camera or stream, again and again, until it ends."""
        with self.failures_noted(source):
            reader = live.open()

            # A batch would have to wait for later frames.
            with closing(iter(LatestFrames(reader))) as frames:
                placed = (VideoFrame(place, place, image) for place, image in frames)
                self.process_frames(source, reader, placed, batch_size=1)

            self.summary.warnings[source] = f"{live.title} gives no more frames"
            if isinstance(reader, StreamReader):
                self.summary.warnings[source] = reader.ending

    def process_frames(
        self,
        source: Path,
        reader: VideoReader | StreamReader,
        frames: Iterable[VideoFrame],
        batch_size: int,
    ) -> int:
        """Detect on the frames of a video or camera, ``batch_size`` at a time.

        Args:
            source: path of the video, or the name that stands for the camera.
            reader: video or camera that the frames come from.
            frames: frames, in order.
            batch_size: number of frames that are computed together.

        Returns:
            The number of frames.

        Raises:
            VideoError: there is no frame.
        """
        paths = self.outputs[source].with_suffix(output_suffix(source, reader.size))
        self.folder.check_names(paths)
        tracker = None
        if self.track:
            # Detections of every class that is shown may begin a track.
            lowest = float(self.score_thresholds.min())
            tracker = Tracker(fps=reader.fps, score_threshold=lowest)

        # Frames are tracked and written one by one, in order.
        count = 0
        hidden = not self.show_progress
        bar = tqdm(frames, desc=source.name, total=reader.num_frames, unit="frame", disable=hidden)
        with self.annotated_video(paths, reader.fps) as video:
            for batch in batches(bar, batch_size):
                outputs = self.detect([frame.image for frame in batch])
                for frame, output in zip(batch, outputs, strict=True):
                    output = succeeded(output)
                    if tracker:
                        output = replace(output, detections=tracker.update(output.detections))

                    write = partial(video.add, frame.place)
                    self.write_results(source, frame.image, output, write, frame.number)

                count += len(batch)

            # The last frame of a video of variable rate may be shown for long.
            if reader.timeline.reaches(COMPLETE):
                video.fill(reader.timeline.full_length())

        if count == 0:
            raise VideoError(f"no frame of the video {source} can be decoded")
        return count

    @contextmanager
    def annotated_video(self, paths: OutputPaths, fps: float) -> Iterator[AnnotatedVideo]:
        """Open the video of the drawings; note it if its codec is one that browsers do not play."""
        video = AnnotatedVideo(paths, fps=fps)
        try:
            with video:
                yield video
        finally:
            if video.codec not in (None, H264):
                self.summary.other_codecs[paths.drawing] = str(video.codec)


def succeeded(output: PredictorOutput | str) -> PredictorOutput:
    """Return an output of :meth:`DetectionRun.detect`; raise RuntimeError if it is a reason."""
    if isinstance(output, str):
        raise RuntimeError(output)
    return output


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield the items in lists of ``size``; the last list may be shorter."""
    # itertools.batched needs Python 3.12.
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
