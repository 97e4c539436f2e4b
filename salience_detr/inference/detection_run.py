"""Detection on a list of images and videos, or on a camera, with all that is written of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import groupby, islice
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from tqdm import tqdm

from salience_detr.data.images import ImageReadError
from salience_detr.detections import Detections
from salience_detr.inference.inputs import ImageRead, ImageReader, is_video
from salience_detr.inference.outputs import (
    AnnotatedVideo,
    OutputFolder,
    Targets,
    draw_salience_map,
    write_image,
)
from salience_detr.inference.records import Record, Recorder
from salience_detr.inference.tracking import Tracker
from salience_detr.inference.video import (
    LatestFrames,
    VideoError,
    VideoReader,
    output_ending,
    read_ahead,
)
from salience_detr.predictor import Detector, PredictorOutput
from salience_detr.utils.errors import one_line
from salience_detr.utils.signals import StopSignals

T = TypeVar("T")

# What an image that is too large for the memory, for example, fails with.
FAILURES = (RuntimeError, ValueError, MemoryError, cv2.error)


@dataclass(frozen=True)
class Job:
    """An input and what becomes of it.

    Attributes:
        position: among all inputs.
        source: the file; of a camera, the name that it goes by.
        targets: where the outputs go.
    """

    position: int
    source: Path
    targets: Targets


class Ending(IntEnum):
    """How the work ended; of several processes the highest counts."""

    DONE = 0
    CANNOT_WRITE = 1
    INTERRUPTED = 2


@dataclass
class DetectionRun:
    """Detects, writes drawings, and notes what was found; an input that fails is noted, and passed over.

    A drawing is written and noted under ``stops.deferred()``, so that both or neither are there.

    Attributes:
        detector: that detects.
        folder: where drawings, salience maps and crops go.
        score_threshold: what is less sure is neither drawn nor noted.
        make_tracker: makes a tracker for a video, of its ``fps``; None does not track.
        stops: the signals that may interrupt it.
        num_threads: that read images.
        show_progress: whether bars are shown.
    """

    detector: Detector
    folder: OutputFolder
    score_threshold: float = 0.0
    make_tracker: Callable[..., Tracker] | None = None
    stops: StopSignals = field(default_factory=StopSignals)
    num_threads: int = 2
    show_progress: bool = True

    def work(self, jobs: Sequence[Job], recorder: Recorder, *, camera: int | None = None) -> Ending:
        """Detect on images and videos, or on a camera, until all is done or a signal comes.

        Args:
            jobs: in order; for a camera the one of its video, or none.
            recorder: takes note of what is found.
            camera: its number.
        """
        self.recorder = recorder
        try:
            if camera is None:
                self.inputs(jobs)
            elif jobs:
                self.camera(jobs[0], camera)
            ending = Ending.DONE
        except KeyboardInterrupt:
            ending = Ending.INTERRUPTED
        except OSError as error:
            self.recorder.failed(jobs[-1].position, str(error))
            ending = Ending.CANNOT_WRITE
        self.stops.ignore()
        return ending

    def inputs(self, jobs: Sequence[Job]) -> None:
        """Work through images and videos, in order."""
        has_own_bar = len(jobs) == 1 and is_video(jobs[0].source)
        with self.bar(total=len(jobs), unit="image", desc="detecting", disable=has_own_bar) as bar:
            for of_videos, group in groupby(jobs, key=lambda job: is_video(job.source)):
                for _ in self.videos(group) if of_videos else self.images([*group]):
                    bar.update()

    def bar(self, *args: Any, disable: bool = False, **kwargs: Any) -> tqdm:
        return tqdm(*args, disable=disable or not self.show_progress, **kwargs)

    def images(self, jobs: Sequence[Job]) -> Iterator[None]:
        """Work through images; yields after each."""
        paths = [job.source for job in jobs]
        for batch in ImageReader(
            paths, batch_size=self.detector.batch_size, num_threads=self.num_threads
        ):
            yield from self.image_batch(jobs, batch)

    def image_batch(self, jobs: Sequence[Job], batch: Sequence[ImageRead]) -> Iterator[None]:
        found = iter(
            self.detect(
                [read.image for read in batch if not isinstance(read.image, ImageReadError)]
            )
        )
        for read in batch:
            job = jobs[read.position]
            if isinstance(read.image, ImageReadError):
                self.recorder.failed(job.position, str(read.image))
            else:
                self.finish_image(job, read.image, next(found))
            yield

    def detect(self, images: Sequence[np.ndarray]) -> list[PredictorOutput | str]:
        """Detections on each image, or why there are none; a batch that fails is tried image by image."""
        try:
            return list(self.detector.stream(images))
        except FAILURES as error:
            reason = one_line(error)
        if len(images) == 1:
            return [reason]
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return [found for image in images for found in self.detect([image])]

    def finish_image(self, job: Job, image: np.ndarray, found: PredictorOutput | str) -> None:
        """Write and note what was found on an image."""
        try:
            if isinstance(found, str):
                raise RuntimeError(found)
            instances = self.confident(found.detections)
            with self.stops.deferred():
                if self.folder.crops:
                    self.folder.write_crops(image, instances, job.targets)
                write_image(job.targets.drawing, self.folder.draw(image, instances))
                if self.folder.salience:
                    write_image(job.targets.salience, draw_salience_map(image, found.salience))
                self.recorder.found(job.position, Record.of(instances, str(job.source)))
                self.recorder.done(job.position)
        except FAILURES as error:
            self.recorder.failed(job.position, f"cannot detect on {job.source}: {one_line(error)}")

    def confident(self, instances: Detections) -> Detections:
        return instances[instances.scores >= self.score_threshold]

    def videos(self, jobs: Iterable[Job]) -> Iterator[None]:
        """Work through videos; yields after each."""
        for job in jobs:
            with self.failures_noted(job):
                self.video(job)
            yield

    def video(self, job: Job) -> None:
        """Detect on all frames of a video; what is written so far survives an interruption."""
        reader = VideoReader(job.source)
        batch_size = self.detector.batch_size
        try:
            with closing(read_ahead(reader, 2 * batch_size)) as frames:
                count = self.frames(job, reader, enumerate(frames), batch_size)
        finally:
            reader.close()
        if reader.num_frames and count < 0.9 * reader.num_frames:
            reason = f"the video {job.source} breaks off: of {reader.num_frames} frames {count} can be decoded"
            self.recorder.note(job.position, reason)

    def camera(self, job: Job, number: int) -> None:
        """Detect on the newest frame of a camera, again and again, until it gives no more."""
        with self.failures_noted(job):
            reader = VideoReader(number)
            with closing(iter(LatestFrames(reader))) as frames:
                self.frames(job, reader, frames, batch_size=1)
            self.recorder.note(job.position, f"camera {number} gives no more frames")

    @contextmanager
    def failures_noted(self, job: Job) -> Iterator[None]:
        """Note that an input was worked through, or why it was not."""
        try:
            yield
            self.recorder.done(job.position)
        except VideoError as error:
            self.recorder.failed(job.position, str(error))
        except FAILURES as error:
            self.recorder.failed(job.position, f"cannot detect on {job.source}: {one_line(error)}")

    def frames(
        self,
        job: Job,
        reader: VideoReader,
        numbered: Iterable[tuple[int, np.ndarray]],
        batch_size: int,
    ) -> int:
        """Detect on frames, each with its place in the video, ``batch_size`` together; returns how many there were.

        Raises:
            VideoError: there is none.
        """
        targets = job.targets.with_ending(output_ending(job.source, reader.size))
        tracker = self.make_tracker(fps=reader.fps) if self.make_tracker else None
        bar = self.bar(numbered, total=reader.num_frames, desc=job.source.name, unit="frame")
        count = 0
        with AnnotatedVideo(targets, fps=reader.fps) as video:
            for batch in batches(bar, batch_size):
                for (place, image), found in zip(
                    batch, self.detect([image for _, image in batch]), strict=True
                ):
                    if isinstance(found, str):
                        raise RuntimeError(found)
                    instances = tracker.update(found.detections) if tracker else found.detections
                    self.finish_frame(
                        job,
                        video,
                        place,
                        image,
                        PredictorOutput(self.confident(instances), found.salience),
                    )
                    count += 1
        if count == 0:
            raise VideoError(f"no frame of the video {job.source} can be decoded")
        return count

    def finish_frame(
        self, job: Job, video: AnnotatedVideo, place: int, image: np.ndarray, found: PredictorOutput
    ) -> None:
        """Write and note what was found on a frame."""
        with self.stops.deferred():
            drawings = [self.folder.draw(image, found.detections)]
            if self.folder.salience:
                drawings.append(draw_salience_map(image, found.salience))
            video.add(place, drawings)
            if self.folder.crops:
                self.folder.write_crops(image, found.detections, job.targets, place)
            self.recorder.found(job.position, Record.of(found.detections, str(job.source), place))


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items in lists of ``size``, the last of which may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
