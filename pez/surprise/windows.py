"""Surprise of a movie, window by window: how far its future lies from what the predictor expects.

A movie is seen at every `frame_step`th frame. A window of `window` such frames is cut at every `stride`th; its first
`context` frames are what is known, the rest is to be predicted. With `short_contexts` the movie's first window is
also asked with 2, 4, ... fewer frames known, since else nothing before frame `context` could surprise.

    surprise = mean over later tokens and channels of | prediction - LN(target) |

LN is a layer norm without weights over the channels: V-JEPA 2's training loss, and what its authors call surprise.
The baseline `copy_last` is the same with LN(the context's last tubelet) repeated as the prediction: a film is then
surprising where it changes.
"""

from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from torch.nn.functional import layer_norm

from pez.encoder.extract import DTYPES
from pez.encoder.preprocessing import TRANSFORMS, read_frames
from pez.errors import UserError
from pez.movies.dataset import MovieDataset
from pez.surprise.forecaster import Forecaster


@dataclass(frozen=True)
class Windows:
    """How movies are cut; counts of frames that are seen."""

    frame_step: int
    window: int = 16
    stride: int = 2
    context: int = 8
    short_contexts: bool = True

    def check(self, tubelet: int) -> None:
        """UserError for counts that no movie could be cut by."""
        for option, value in (("--frame-step", self.frame_step), ("--stride", self.stride)):
            if value < 1:
                raise UserError(f"{option} must be at least 1; got {value}: give a number in that range")
        for option, value in (("--window-frames", self.window), ("--context-frames", self.context)):
            if value < tubelet or value % tubelet:
                raise UserError(f"{option} must be a multiple of the tubelet, {tubelet} frames; got {value}: give one")
        if self.context >= self.window:
            raise UserError(
                f"--context-frames {self.context} leaves nothing of --window-frames {self.window} to predict: lower it"
            )

    def n_seen(self, n_frames: int) -> int:
        """Frames of a movie that are seen."""
        return len(range(0, n_frames, self.frame_step))

    def of(self, n_frames: int, tubelet: int) -> list[tuple[int, tuple[int, ...]]]:
        """(first frame, lengths of context) of every window, in frames that are seen."""
        short = range(tubelet, self.context, tubelet) if self.short_contexts else ()
        starts = range(0, self.n_seen(n_frames) - self.window + 1, self.stride)
        return [(start, (*short, self.context) if start == 0 else (self.context,)) for start in starts]


def check_lengths(movies, windows: Windows) -> None:
    """UserError naming the first movie (rows with `clip_id` and `n_frames`) that is shorter than a window."""
    for movie in movies.itertuples():
        if windows.n_seen(movie.n_frames) < windows.window:
            raise UserError(
                f"{movie.clip_id} has {movie.n_frames} frames, of which --frame-step {windows.frame_step} leaves "
                f"{windows.n_seen(movie.n_frames)}, fewer than --window-frames {windows.window}: lower one of them"
            )


def movie_frames(dataset: MovieDataset, movie, frame_step: int, transform: str, resolution: int) -> torch.Tensor:
    """Every `frame_step`th frame of a movie from its first, uint8 [T, 3, R, R]; UserError if it is damaged."""
    paths = dataset.frames(movie, movie.n_frames)
    if dataset.films:
        frames = _film_frames(paths[0], frame_step, movie.n_frames)
    else:
        paths = paths[::frame_step]
        frames = read_frames(paths, len(paths))
    return TRANSFORMS[transform](frames, resolution)


def _film_frames(path: Path, frame_step: int, n_frames: int) -> torch.Tensor:
    kept, count = [], 0
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):  # one at a time: a whole film would take much memory
                if count % frame_step == 0:
                    kept.append(frame.to_ndarray(format="rgb24"))
                count += 1
    except (av.error.FFmpegError, IndexError) as error:
        raise UserError(f"{path} is not a video that can be decoded ({error}): download it again") from None
    if count != n_frames:
        raise UserError(f"{path} lists {n_frames} frames, of which {count} can be decoded: download it again")
    return torch.from_numpy(np.stack(kept)).permute(0, 3, 1, 2)


@torch.inference_mode()
def movie_surprises(
    forecaster: Forecaster, frames: torch.Tensor, windows: Windows, *, dtype: str = "float32", batch_size: int = 2
) -> list[tuple[int, int, float, float]]:
    """(first frame of the movie, frames known, surprise, surprise of copying the last) of every window.

    `frames` uint8 [T, 3, R, R], the frames that are seen. `first frame` counts all frames of the movie.
    """
    tubelet, surprises = forecaster.spec.tubelet_size, []
    every = windows.of(len(frames) * windows.frame_step, tubelet)
    batches = [[every[0]], *(every[first : first + batch_size] for first in range(1, len(every), batch_size))]
    lower = dtype != "float32"
    for batch in batches:
        clips = torch.stack([frames[start : start + windows.window] for start, _ in batch]).to(forecaster.device)
        with torch.autocast(forecaster.device.type, dtype=DTYPES[dtype], enabled=lower):
            target = _normalised(forecaster.encode_target(clips))
            for context in batch[0][1]:
                known = forecaster.encode_context(clips[:, :context])
                predicted = forecaster.predict(known, target.shape[1]).float()
                last = _normalised(known[:, -forecaster.n_patches :])
                copied = last.repeat(1, (windows.window - context) // tubelet, 1)
                wanted = target[:, known.shape[1] :]
                errors = [(guess - wanted).abs().mean((1, 2)).tolist() for guess in (predicted, copied)]
                surprises += [
                    (start * windows.frame_step, context, *own) for (start, _), *own in zip(batch, *errors, strict=True)
                ]
    return surprises


def _normalised(tokens: torch.Tensor) -> torch.Tensor:
    tokens = tokens.float()
    return layer_norm(tokens, tokens.shape[-1:])
