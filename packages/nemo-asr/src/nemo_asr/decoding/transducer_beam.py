"""Beam search through a transducer, on tensors of utterances x hypotheses.

Each hypothesis is a sequence of tokens at a frame.  A step continues hypotheses by a token, which stays at the frame
(or, with durations, leads on), or by a blank, which leads on; those that become the same sequence at the same frame
are merged, their probabilities added, and the best K remain.  Which ones a step continues, and by what, is the
strategy:

    alsd, malsd_batch   all, so that tokens and blanks together are equally many (alignment-length synchronous, Saon et
                        al., ICASSP 2020); with durations those at the earliest frame
    tsd                 those at the earliest frame (time-synchronous)
    maes, maes_batch    those at the earliest frame, by at most `maes_num_steps` tokens there and only by tokens that
                        come near the best one, after a search among prefixes (modified adaptive expansion, Kim et al.,
                        arXiv 2010.12878)

B batch, K hypotheses of an utterance, N = B K, R of them that a step continues, T frames, H joint width, E tokens that
a hypothesis is continued by, D durations, S blanks, V tokens without blank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from nemo_asr.decoding.beam import EMPTY, BeamPath, Step, extend_fingerprint, merge_equal, place_fingerprint, read_back
from nemo_asr.decoding.fusion import Fusion
from nemo_asr.decoding.transducer_path import SearchSteps, TransducerPath
from nemo_asr.evaluation_mode import evaluation_mode
from nemo_asr.modules.joint import RNNTJoint
from nemo_asr.modules.prediction import PredictionNetwork, State

LEAST_TOKEN_P = 1e-2
"""Where a language model weighs blanks, too, what is left to tokens beside blank is taken to be no less than this."""


@dataclass(frozen=True)
class BeamOptions:
    """How a beam search goes.

    Attributes:
        beam_size: K.
        max_symbols: tokens at one frame, after which a hypothesis must go on; None for no limit.
        in_time_order: a step continues the hypotheses at the earliest frame only.
        more_tokens: E is K and so many more.
        margin: tokens and blanks whose score is so much below the best one's are left out.
        search_prefixes: on reaching a frame, a hypothesis gets what a one token shorter one would give it there.
        score_norm: hypotheses are ranked by score over tokens + 1.
        temperature: divides the joint's scores.
        weigh_blank: with a language model of weight w, blank's score counts 1 + w times, and tokens get w times the
            logarithm of what blank leaves to them.  Phrases do not count here, other than in NVIDIA's toolkit: they are
            no distribution, and with them this would cost more recall than they gain.
        prune_with_fusion: the E tokens are chosen by the fused scores, and not by the network's alone.
        token_bonus: added to each token's score; balances that every token costs a language model's price, and blanks
            none.
        inner_lm_weight: of the joint's own language model, which is subtracted where there is another one.
    """

    beam_size: int
    max_symbols: int | None = 10
    in_time_order: bool = False
    more_tokens: int = 0
    margin: float = math.inf
    search_prefixes: bool = False
    score_norm: bool = True
    temperature: float = 1.0
    weigh_blank: bool = True
    prune_with_fusion: bool = True
    token_bonus: float = 0.0
    inner_lm_weight: float = 0.0


@dataclass
class _Beam:
    """Hypotheses: score, frame, tokens at it, all tokens, last token, fingerprints of the tokens with and without the
    last one, all (B, K); the prediction network's output g (N, 1, H) and state, and the fused models' states (N, M)."""

    score: Tensor
    frame: Tensor
    symbols: Tensor
    count: Tensor
    last: Tensor
    fingerprint: Tensor
    prefix: Tensor
    g: Tensor
    state: State
    fused: Tensor | None

    def due(self, length: Tensor, in_time_order: bool) -> Tensor:
        """Which hypotheses (B, K) the next step continues."""
        alive = (self.score > -torch.inf) & (self.frame < length[:, None])
        if not in_time_order:
            return alive
        frame = torch.where(alive, self.frame, torch.iinfo(torch.long).max)
        return alive & (frame == frame.min(dim=1, keepdim=True).values)


class _Moves(NamedTuple):
    """How R hypotheses may go on: scores (R, E, D) of tokens (R, E) with durations, and scores (R, S) of blanks."""

    tokens: Tensor
    token_scores: Tensor
    blank_scores: Tensor


class BeamSearch:
    """Finds the K best token sequences.

    Args:
        decoder: the prediction network.
        joint: its scores are over tokens, blank, and `durations` if there are any.
        options: the strategy.
        durations: of a TDT model, in the order of the joint's last outputs.
        big_blank_durations: of a multi-blank model, from the label before blank downwards.
    """

    def __init__(
        self,
        decoder: PredictionNetwork,
        joint: RNNTJoint,
        options: BeamOptions,
        *,
        durations: Sequence[int] = (),
        big_blank_durations: Sequence[int] = (),
    ) -> None:
        self.decoder, self.joint = decoder, joint
        leaps = bool(durations) or bool(big_blank_durations)
        self.options = replace(options, in_time_order=options.in_time_order or leaps)
        self.has_durations = bool(durations)
        self.blank = joint.num_classes_with_blank - 1 - len(durations)
        self.first_blank = self.blank - len(big_blank_durations)
        self.token_leads = tuple(durations) or (0,)
        # As in greedy search, a blank of duration 0 leads one frame on.
        self.blank_leads = (
            tuple(dict.fromkeys(max(duration, 1) for duration in durations))
            if durations
            else (*reversed(big_blank_durations), 1)
        )

    @torch.no_grad()
    def __call__(
        self, encoded: Tensor, encoded_len: Tensor, fusion: Fusion | None = None, *, keep_steps: bool = False
    ) -> list[list[TransducerPath]]:
        """Hypotheses of encoder outputs (B, D, T) with their lengths (B,), for each utterance the best first.

        Args:
            encoded: encoder outputs.
            encoded_len: frames of each.
            fusion: models on the encoder outputs' device whose scores are added to the network's.
            keep_steps: paths hold every step, blanks included, without scores.
        """
        with evaluation_mode(self.decoder), evaluation_mode(self.joint):
            f = self.joint.project_encoder(encoded.transpose(1, 2))
            beam, steps = self._search(f, encoded_len.to(f.device), fusion)
        return self._paths(beam, steps, encoded_len, fusion, keep_steps)

    def _search(self, f: Tensor, length: Tensor, fusion: Fusion | None) -> tuple[_Beam, list[Step]]:
        beam, steps = self._start(f, fusion), []
        while bool((due := beam.due(length, self.options.in_time_order)).any()):
            rows = due.flatten().nonzero().squeeze(1)
            moves = self._moves(f, beam, rows, fusion)
            beam, step = self._step(beam, due, rows, moves, length, fusion)
            steps.append(step)
        return beam, steps

    def _start(self, f: Tensor, fusion: Fusion | None) -> _Beam:
        B, K = f.shape[0], self.options.beam_size
        zeros = torch.zeros((B, K), dtype=torch.long, device=f.device)
        score = torch.full((B, K), -torch.inf, device=f.device)
        score[:, 0] = 0.0
        state = self.decoder.initialize_state(f.new_empty(B * K, 1))
        g, state = self._predict(zeros.flatten() + self.decoder.blank_idx, state)
        fused = None if fusion is None else fusion.start(B * K)
        return _Beam(score, zeros, zeros, zeros, zeros - 1, zeros + EMPTY, zeros - 1, g, state, fused)

    def _predict(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        output, state = self.decoder.predict(tokens[:, None], state, add_sos=False)
        return self.joint.project_prednet(output), state

    def _moves(self, f: Tensor, beam: _Beam, rows: Tensor, fusion: Fusion | None) -> _Moves:
        """Scores of the ways on for the hypotheses `rows` (R,); changes beam.score where prefixes are searched."""
        utterance = rows // self.options.beam_size
        frame = beam.frame.flatten()[rows]
        seen = self.joint.joint_after_projection(f[utterance, frame][:, None], beam.g[rows])[:, 0, 0].float()
        scores = (seen / self.options.temperature)[:, : self.blank + 1].log_softmax(dim=1)
        plain, blanks = scores[:, : self.first_blank], scores[:, self.first_blank :]
        tokens, blanks = self._fuse(plain, blanks, beam, rows, fusion)
        leads = torch.zeros((len(rows), 1), device=f.device)
        if self.has_durations:
            leads = (seen / self.options.temperature)[:, self.blank + 1 :].log_softmax(dim=1)
        blank_scores = self._blank_scores(blanks, leads)
        extras = self.options.beam_size + self.options.more_tokens
        chosen = (tokens if self.options.prune_with_fusion else plain).topk(min(extras, tokens.shape[1]), dim=1).indices
        values = tokens.gather(1, chosen)
        near = torch.maximum(tokens.amax(1), blanks.amax(1))[:, None] - self.options.margin
        token_scores = torch.where(values > near, values, -torch.inf)[:, :, None] + leads[:, None, :]
        blank_scores = torch.where(blanks.amax(1, keepdim=True) > near, blank_scores, -torch.inf)
        if self.options.search_prefixes and 0 in self.token_leads:
            self._search_prefixes(beam, rows, tokens, leads, chosen, token_scores)
        self._limit(beam, rows, blanks, leads, token_scores, blank_scores)
        return _Moves(chosen, token_scores, blank_scores)

    def _fuse(
        self, tokens: Tensor, blanks: Tensor, beam: _Beam, rows: Tensor, fusion: Fusion | None
    ) -> tuple[Tensor, Tensor]:
        """Fused scores of tokens (R, V) and blanks (R, blanks)."""
        tokens = tokens + self.options.token_bonus
        if fusion is None or beam.fused is None:
            return tokens, blanks
        tokens = tokens + fusion.scores(beam.fused[rows])
        if self.options.weigh_blank and fusion.language_weight:
            blank = blanks.logsumexp(dim=1, keepdim=True)
            left = torch.log1p(-blank.exp().clamp_max(1 - LEAST_TOKEN_P))
            tokens, blanks = tokens + fusion.language_weight * left, blanks + fusion.language_weight * blank
        if self.options.inner_lm_weight and fusion.language_weight:
            inner = self.joint.internal_language_model(beam.g[rows])[:, 0]
            tokens = tokens - self.options.inner_lm_weight * inner
        return tokens, blanks

    def _blank_scores(self, blanks: Tensor, leads: Tensor) -> Tensor:
        """Scores (R, S) of the ways to go on without a token."""
        if not self.has_durations:
            return blanks
        columns = [
            torch.stack([leads[:, i] for i, given in enumerate(self.token_leads) if max(given, 1) == lead]).amax(0)
            for lead in self.blank_leads
        ]
        return blanks + torch.stack(columns, dim=1)

    def _search_prefixes(
        self, beam: _Beam, rows: Tensor, tokens: Tensor, leads: Tensor, chosen: Tensor, token_scores: Tensor
    ) -> None:
        """Gives hypotheses that just reached a frame what those that are one token shorter would give them there, and
        takes these tokens from the latter."""
        stay = self.token_leads.index(0)
        place = torch.full((beam.score.numel(),), -1, device=rows.device)
        place[rows] = torch.arange(len(rows), device=rows.device)
        place = place.view_as(beam.score)
        fresh = (place >= 0) & (beam.symbols == 0)
        longer = beam.prefix[:, :, None] == beam.fingerprint[:, None, :]
        longer &= beam.count[:, :, None] == beam.count[:, None, :] + 1
        utterance, long, short = torch.nonzero(longer & fresh[:, :, None] & fresh[:, None, :], as_tuple=True)
        row, last = place[utterance, short], beam.last[utterance, long]
        given, score, length = tokens[row, last] + leads[row, stay], beam.score.clone(), beam.count[utterance, long]
        for tokens_long in sorted(set(length.tolist())):  # from the shortest on, so that it reaches the longest as well
            now = length == tokens_long
            target = utterance[now], long[now]
            score[target] = torch.logaddexp(score[target], score[utterance[now], short[now]] + given[now])
        beam.score = score
        pair, column = torch.nonzero(chosen[row] == last[:, None], as_tuple=True)
        token_scores[row[pair], column, stay] = -torch.inf

    def _limit(
        self, beam: _Beam, rows: Tensor, blanks: Tensor, leads: Tensor, token_scores: Tensor, blank_scores: Tensor
    ) -> None:
        """Hypotheses with `max_symbols` tokens at their frame can only move to the next one."""
        if self.options.max_symbols is None:
            return
        full = beam.symbols.flatten()[rows] >= self.options.max_symbols
        if not bool(full.any()):
            return
        next_frame = min(range(len(self.blank_leads)), key=self.blank_leads.__getitem__)
        moved = self._blank_scores(blanks, leads)[:, next_frame]
        token_scores[full] = -torch.inf
        blank_scores[full] = -torch.inf
        blank_scores[full, next_frame] = moved[full]

    def _step(
        self, beam: _Beam, due: Tensor, rows: Tensor, moves: _Moves, length: Tensor, fusion: Fusion | None
    ) -> tuple[_Beam, Step]:
        """The best K of all continuations, and of the hypotheses that wait or are done."""
        B, K = beam.score.shape
        R, E, D = moves.token_scores.shape
        device = rows.device
        scores = torch.cat([moves.token_scores.reshape(R, E * D), moves.blank_scores], dim=1)
        C = scores.shape[1]
        scores = scores + beam.score.flatten()[rows, None]
        # The last column is to stay as one is.
        staying = torch.where(due, -torch.inf, beam.score).reshape(-1, 1)
        candidates = torch.cat([torch.full((B * K, C), -torch.inf, device=device), staying], dim=1)
        candidates[rows, :C] = scores
        tokens = torch.full((B * K, C + 1), -1, device=device)
        tokens[rows, : E * D] = moves.tokens.repeat_interleave(D, dim=1)
        leads = torch.tensor([*self.token_leads * E, *self.blank_leads, 0], device=device)
        sequence = beam.fingerprint.reshape(-1, 1).expand(-1, C + 1)
        sequence = torch.where(tokens >= 0, extend_fingerprint(sequence, tokens), sequence)
        frame = torch.minimum((beam.frame.reshape(-1, 1) + leads).view(B, -1), length.clamp_min(0)[:, None])
        keys = place_fingerprint(sequence.reshape(B, -1), frame)
        candidates = candidates.view(B, -1)
        # A beam of one follows the best path instead of sums, and so is greedy search.
        score, pick = (candidates if K == 1 else merge_equal(keys, candidates)).topk(K, dim=1)
        parent, column = pick // (C + 1), pick % (C + 1)
        token, lead = tokens.view(B, -1).gather(1, pick), leads[column]
        after = _continue(beam, parent, token, lead, score)
        self._advance(after, parent, token, length, fusion)
        return after, Step(parent, token, beam.frame.gather(1, parent), lead)

    def _advance(self, beam: _Beam, parent: Tensor, token: Tensor, length: Tensor, fusion: Fusion | None) -> None:
        """Takes the networks' states from the parents, and moves those of hypotheses that got a token."""
        B, K = parent.shape
        source = (parent + torch.arange(B, device=parent.device)[:, None] * K).flatten()
        moving = (token >= 0) & (beam.score > -torch.inf) & (beam.frame < length[:, None])
        found = moving.flatten().nonzero().squeeze(1)
        beam.g = beam.g[source]
        beam.state = self.decoder.select_states(beam.state, source)
        beam.fused = None if beam.fused is None else beam.fused[source]
        if len(found) == 0:
            return
        tokens = token.flatten()[found]
        g, state = self._predict(tokens, self.decoder.select_states(beam.state, found))
        beam.g = beam.g.index_copy(0, found, g.to(beam.g.dtype))
        beam.state = self.decoder.replace_states(beam.state, found, state)
        if fusion is not None and beam.fused is not None:
            beam.fused = beam.fused.index_copy(0, found, fusion.advance(beam.fused[found], tokens))

    def _paths(
        self, beam: _Beam, steps: list[Step], encoded_len: Tensor, fusion: Fusion | None, keep_steps: bool
    ) -> list[list[TransducerPath]]:
        score = beam.score
        if fusion is not None and beam.fused is not None:
            score = score + fusion.final(beam.fused, sentence=False).view_as(score)
        rank = score / (beam.count + 1) if self.options.score_norm else score
        ends = rank.argsort(dim=1, descending=True, stable=True)
        found = zip(read_back(steps, ends), score.gather(1, ends).tolist(), encoded_len.tolist(), strict=True)
        return [
            [
                self._path(path, value, length, keep_steps)
                for path, value in zip(paths, values, strict=True)
                if value > -math.inf
            ]
            for paths, values, length in found
        ]

    def _path(self, path: BeamPath, score: float, length: int, keep_steps: bool) -> TransducerPath:
        durations = path.durations if self.has_durations else []
        found = TransducerPath(path.tokens, path.frames, durations, score, int(length))
        if keep_steps:
            token, frame, lead = path.way
            moved = (token >= 0) | (lead > 0)  # at the other steps the hypothesis waited, or was done
            labels = torch.where(token >= 0, token, self.blank)
            found.steps = SearchSteps(frame[moved], labels[moved], None)
        return found


def _continue(beam: _Beam, parent: Tensor, token: Tensor, lead: Tensor, score: Tensor) -> _Beam:
    """The hypotheses after a step; networks' states are still those before it."""
    emitted = token >= 0
    before = beam.fingerprint.gather(1, parent)
    symbols = beam.symbols.gather(1, parent) + emitted
    return replace(
        beam,
        score=score,
        frame=beam.frame.gather(1, parent) + lead,
        symbols=torch.where(lead > 0, 0, symbols),
        count=beam.count.gather(1, parent) + emitted,
        last=torch.where(emitted, token, beam.last.gather(1, parent)),
        fingerprint=torch.where(emitted, extend_fingerprint(before, token), before),
        prefix=torch.where(emitted, before, beam.prefix.gather(1, parent)),
    )
