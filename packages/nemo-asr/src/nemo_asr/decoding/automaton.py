"""A back-off automaton in tensors: scores of every next token, for a batch of states (after NGPU-LM, arXiv 2505.22857).

A state knows some tokens by arcs; for the others it falls back to another state, at a price:

    score(s, v) = weight of s's arc for v, or backoff(s) + score(fallback(s), v)

State 0, where falling back ends, knows every token.  Both an n-gram model and a tree of phrases have this form.

N states asked for, S states, A arcs, V tokens without blank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

ROOT = 0


@dataclass(frozen=True)
class BackoffAutomaton:
    """The tables; arcs are sorted by state, then token, and those of state 0 stand in tables of their own.

    Attributes:
        root_weight, root_target: of state 0's arc for each token (V,).
        first_arc: index of each state's first arc, and A at the end (S + 1,).
        arc_token, arc_weight, arc_target: (A,).
        backoff_weight, backoff_target: of each state (S,).
        final: score of an end of the sequence at each state (S,).
        start: state before the first token.
    """

    root_weight: Tensor
    root_target: Tensor
    first_arc: Tensor
    arc_token: Tensor
    arc_weight: Tensor
    arc_target: Tensor
    backoff_weight: Tensor
    backoff_target: Tensor
    final: Tensor
    start: int
    arc_key: Tensor

    @classmethod
    def build(
        cls,
        root: Sequence[tuple[float, int]],
        arcs: Iterable[tuple[int, int, float, int]],
        backoffs: Sequence[tuple[float, int]],
        final: Sequence[float],
        start: int = ROOT,
    ) -> BackoffAutomaton:
        """An automaton of plain numbers.

        Args:
            root: weight and target of state 0's arc for each token.
            arcs: state (above 0), token, weight and target of each arc, in any order.
            backoffs: weight and target of each state's fall-back; state 0's is not used.
            final: score of an end at each state.
            start: state before the first token.
        """
        rows = sorted(arcs)
        columns = list(zip(*rows, strict=True)) if rows else [(), (), (), ()]
        state, token, target = (torch.tensor(columns[index], dtype=torch.long) for index in (0, 1, 3))
        counts = torch.bincount(state, minlength=len(backoffs))
        return cls(
            root_weight=torch.tensor([weight for weight, _ in root]),
            root_target=torch.tensor([target for _, target in root]),
            first_arc=torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)]),
            arc_token=token,
            arc_weight=torch.tensor(columns[2], dtype=torch.float),
            arc_target=target,
            backoff_weight=torch.tensor([weight for weight, _ in backoffs]),
            backoff_target=torch.tensor([target for _, target in backoffs]),
            final=torch.tensor(final),
            start=start,
            arc_key=state * len(root) + token,
        )

    @property
    def vocab_size(self) -> int:
        """V."""
        return len(self.root_weight)

    def to(self, device: torch.device) -> BackoffAutomaton:
        """The same on another device."""
        if self.root_weight.device == device:
            return self
        tables = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: table.to(device) for name, table in tables.items() if isinstance(table, Tensor)}
        return replace(self, **moved)

    def start_states(self, count: int) -> Tensor:
        """The state before the first token, `count` times."""
        return torch.full((count,), self.start, device=self.root_weight.device)

    def scores(self, states: Tensor) -> Tensor:
        """Scores (N, V) of every token after states (N,)."""
        chain = [(states, torch.zeros(len(states), device=states.device))]
        while bool((chain[-1][0] != ROOT).any()):
            below, price = chain[-1]
            price = price + torch.where(below == ROOT, 0.0, self.backoff_weight[below])
            chain.append((torch.where(below == ROOT, ROOT, self.backoff_target[below]), price))
        scores = self.root_weight + chain[-1][1][:, None]
        for below, price in reversed(chain[:-1]):
            self._write_arcs(scores, below, price)
        return scores

    def _write_arcs(self, scores: Tensor, states: Tensor, price: Tensor) -> None:
        """Overwrites scores (N, V) where states (N,) have arcs, at a price (N,)."""
        first = self.first_arc[states]
        counts = self.first_arc[states + 1] - first
        row = torch.repeat_interleave(torch.arange(len(states), device=states.device), counts)
        place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
        arc = first[row] + place
        scores[row, self.arc_token[arc]] = price[row] + self.arc_weight[arc]

    def advance(self, states: Tensor, tokens: Tensor) -> Tensor:
        """States (N,) after tokens (N,)."""
        after = self.root_target[tokens]
        open_rows = torch.nonzero(states != ROOT).squeeze(1)
        while len(open_rows) and len(self.arc_key):
            key = states[open_rows] * self.vocab_size + tokens[open_rows]
            place = torch.searchsorted(self.arc_key, key).clamp_max(len(self.arc_key) - 1)
            found = self.arc_key[place] == key
            after = after.index_copy(0, open_rows[found], self.arc_target[place[found]])
            open_rows = open_rows[~found]
            states = states.index_copy(0, open_rows, self.backoff_target[states[open_rows]])
            open_rows = open_rows[states[open_rows] != ROOT]
        return after


def longest_suffix(tokens: tuple[int, ...], states: Mapping[tuple[int, ...], int]) -> tuple[int, ...]:
    """The longest end of a sequence, itself included, that is one of the states; the empty one always is."""
    for begin in range(len(tokens)):
        if tokens[begin:] in states:
            return tokens[begin:]
    return ()
