"""NeMo Curator's videos with clips in, the same videos out: scores in the clips, bad clips among `filtered_clips`.

pipeline.add_stage(ClipQAlignFilterStage("one-align-int8", score_threshold=0.5))
"""

from __future__ import annotations

from dataclasses import dataclass, field

from qalign_fast.adapters.nemo_curator_stages import QAlignStage
from qalign_fast.errors import VideoError, one_line
from qalign_fast.feed.items import ClipOptions, Item, Medium
from qalign_fast.needs import need

need("av", "'qalign-fast[video]'")
from nemo_curator.tasks.video import Clip, VideoTask


@dataclass
class ClipQAlignFilterStage(QAlignStage):
    """Scores a video's clips by the model's prompt for clips, from their `buffer`, the bytes of a file.

    A clip's `aesthetic_score` becomes the score on 0..1, whatever the task: it is the one score that Curator's
    ClipWriterStage writes for a filter, and clips have no metadata. A clip that cannot be read has a line in `errors`,
    under "qalign". Clips below the threshold are counted in `num_filtered_by_aesthetic`.

    fps, max_frames: as `Scorer.score_video` takes them.
    """

    fps: float = 1.0
    max_frames: int | None = None
    name: str = "clip_qalign_filter"
    medium: Medium = field(default="video", init=False)

    def inputs(self) -> tuple[list[str], list[str]]:
        """A video's clips."""
        return ["data"], ["clips"]

    def outputs(self) -> tuple[list[str], list[str]]:
        """Those that passed, and those that did not."""
        return ["data"], ["clips", "filtered_clips"]

    def process(self, task: VideoTask) -> VideoTask:
        """The same task, changed."""
        video, kept = task.data, list[Clip]()
        options = ClipOptions(self.fps, self.max_frames)
        media = [clip.buffer or VideoError(f"clip {clip.uuid} has no buffer") for clip in video.clips]
        found = self.scored(Item(None, one, "video", options) for one in media)
        for clip, scored in zip(video.clips, found, strict=True):
            if scored.error is not None:
                clip.errors["qalign"] = one_line(scored.error)
            else:
                clip.aesthetic_score = scored.get()[self.task].unit
            (kept if self.passes(scored) else video.filtered_clips).append(clip)
        video.clip_stats.num_filtered_by_aesthetic += len(video.clips) - len(kept)
        video.clips = kept
        return task
