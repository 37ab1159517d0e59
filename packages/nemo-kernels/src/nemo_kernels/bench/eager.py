"""The operations as one writes them in plain torch, without a kernel: what ours are measured against.

In float64 the same functions are what every subject's results are compared with (and the tests compare them with the
textbook references in turn).  B batch, T frames, U target steps, W = U + 1, V vocabulary with blank, D durations
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_IMPOSSIBLE = -1e30  # not -inf, whose differences are not numbers in a backward pass


def transducer_losses(
    logits: Tensor, targets: Tensor, frame_len: Tensor, target_len: Tensor, durations: Sequence[int] = ()
) -> Tensor:
    """Losses (B,) of RNNT, or with durations of TDT: log-softmax, then the lattice by autograd; the blank comes last.

    logits (B, T, W, V + D), targets (B, U), frame_len (B,), target_len (B,).
    """
    n_tokens = logits.shape[-1] - len(durations)
    tokens, lengths = logits[..., :n_tokens], logits[..., n_tokens:]
    log_p = tokens.log_softmax(-1)
    columns = F.pad(targets, (0, 1)).long()[:, None, :, None].expand(*logits.shape[:3], 1)
    blank, label = log_p[..., -1], log_p.gather(-1, columns)[..., 0]
    if not durations:
        return _lattice_losses([(1, blank)], [(0, label)], frame_len, target_len)
    log_d = lengths.log_softmax(-1).unbind(-1)
    blanks = [(d, blank + score) for d, score in zip(durations, log_d, strict=True) if d > 0]
    labels = [(d, label + score) for d, score in zip(durations, log_d, strict=True)]
    return _lattice_losses(blanks, labels, frame_len, target_len)


def _lattice_losses(
    blanks: list[tuple[int, Tensor]], labels: list[tuple[int, Tensor]], frame_len: Tensor, target_len: Tensor
) -> Tensor:
    """Losses (B,) from (frames moved, scores (B, T, W)) of every kind of blank and label, diagonal by diagonal."""
    batch, frames, width = blanks[0][1].shape
    step = torch.arange(width, device=frame_len.device)
    frame = torch.arange(frames + width, device=frame_len.device)[:, None] - step  # of step u on diagonal n
    skewed_blanks = [(d, _on_diagonals(plane, frame, frame_len)) for d, plane in blanks]
    skewed_labels = [(d, _on_diagonals(plane, frame, frame_len)) for d, plane in labels]
    beyond = (frame >= frame_len[:, None, None]).transpose(0, 1)  # a path ends with a blank, not with a label
    alphas = [torch.where(step == 0, 0.0, _IMPOSSIBLE).to(blanks[0][1]).expand(batch, width)]
    for n in range(1, frames + width):
        arrivals = [alphas[n - d] + plane[:, n - d] for d, plane in skewed_blanks if n >= d]
        for d, plane in skewed_labels:
            if n > d:
                before = (alphas[n - 1 - d] + plane[:, n - 1 - d])[:, :-1]
                arrivals.append(F.pad(before, (1, 0), value=_IMPOSSIBLE).masked_fill(beyond[n], _IMPOSSIBLE))
        alphas.append(torch.logsumexp(torch.stack(arrivals), dim=0))
    item = torch.arange(batch, device=frame_len.device)
    return -torch.stack(alphas)[frame_len + target_len, item, target_len]


def _on_diagonals(plane: Tensor, frame: Tensor, frame_len: Tensor) -> Tensor:
    """Scores (B, T, W) as (B, T + W, W), where [b, n, u] is the cell (n - u, u), and impossible outside."""
    inside = (frame >= 0) & (frame < frame_len[:, None, None])
    rows = frame.clamp(0, plane.shape[1] - 1).expand(plane.shape[0], -1, -1)
    return plane.gather(1, rows).masked_fill(~inside, _IMPOSSIBLE)


def joint_logits(encoder_out: Tensor, predictor_out: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """relu(f + g) W^T + b: (B, T, W, V) of encoder_out (B, T, H), predictor_out (B, W, H), weight (V, H), bias (V,)."""
    return F.linear(F.relu(encoder_out[:, :, None] + predictor_out[:, None]), weight, bias)


def shifted_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embedding: Tensor,
    content_bias: Tensor,
    position_bias: Tensor,
    frame_len: Tensor,
) -> Tensor:
    """Attention with relative positions, every score in memory, positions aligned by padding and reshaping.

    query, key, value (B, H, T, K), embedding (H, 2T - 1, K), biases (H, K), frame_len (B,); output (B, H, T, K).
    """
    batch, heads, frames, width = query.shape
    content = (query + content_bias[:, None]) @ key.transpose(-1, -2)
    position = (query + position_bias[:, None]) @ embedding.transpose(-1, -2)
    position = F.pad(position, (1, 0)).view(batch, heads, 2 * frames, frames)[:, :, 1:]
    position = position.reshape(batch, heads, frames, 2 * frames - 1)[..., :frames]
    hidden = torch.arange(frames, device=query.device) >= frame_len[:, None]
    hidden = (hidden[:, :, None] | hidden[:, None])[:, None]
    scores = ((content + position) / math.sqrt(width)).masked_fill(hidden, -10000.0)
    return scores.softmax(-1).masked_fill(hidden, 0.0) @ value


def stft_features(audio: Tensor, audio_len: Tensor, window: Tensor, filters: Tensor) -> Tensor:
    """Log-mel features (B, F, T) of audio (B, L) by `torch.stft`, in NVIDIA's order of steps, at 16 kHz.

    window (400,), filters (F, 257); as `log_mel` does by default.
    """
    samples, hop = torch.arange(audio.shape[1], device=audio.device), 160
    audio = torch.cat((audio[:, :1], audio[:, 1:] - 0.97 * audio[:, :-1]), dim=1)
    audio = audio.masked_fill(samples >= audio_len[:, None], 0.0)
    spectrum = torch.stft(audio, 512, hop, window.shape[0], window, pad_mode="constant", return_complex=True)
    magnitude = torch.view_as_real(spectrum).pow(2).sum(-1).sqrt()
    features = torch.log(filters @ magnitude.pow(2) + 2.0**-24)
    count = (audio_len // hop)[:, None, None]
    valid = torch.arange(features.shape[2], device=audio.device) < count
    mean = features.masked_fill(~valid, 0.0).sum(2, keepdim=True) / count
    squares = (features - mean).masked_fill(~valid, 0.0).pow(2).sum(2, keepdim=True)
    return ((features - mean) / ((squares / (count - 1)).sqrt() + 1e-5)).masked_fill(~valid, 0.0)
