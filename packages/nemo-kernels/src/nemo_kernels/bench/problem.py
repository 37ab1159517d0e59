"""What is measured: the inputs of an operation, the subjects that work on them, and the results they must give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

Results = dict[str, Tensor]
_PRECISION = {torch.float64: 1e-9, torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 1e-2}


@dataclass(frozen=True)
class Problem:
    """Inputs of one operation, the first axis of which is the utterance unless they are shared.

    Attributes:
        floating: tensors that are differentiated by, each with the deviation of the noise that fills it.
        lengths: tensors of integers.
        constant: tensors that are neither; "upstream" is the gradient of the output, where it is not 1.
        deviation: of the noise in each floating tensor.
        shared: names of tensors that all utterances share.
        numbers: what else the subjects need, e.g. durations.
    """

    floating: dict[str, Tensor]
    lengths: dict[str, Tensor]
    deviation: Mapping[str, float]
    constant: dict[str, Tensor] = field(default_factory=dict)
    shared: frozenset[str] = frozenset()
    numbers: tuple[int, ...] = ()

    def refill(self) -> None:
        """Fills the floating tensors with the same noise in every process: an operation may have overwritten them."""
        for seed, (name, tensor) in enumerate(self.floating.items()):
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                if tensor.device.type == "cpu" and tensor.dtype == torch.float32:
                    tensor.normal_(std=self.deviation[name], generator=generator)
                else:
                    noise = torch.empty(tensor.shape).normal_(std=self.deviation[name], generator=generator)
                    tensor.copy_(noise)

    def gradients_of(self, output: Tensor, upstream: Tensor | None = None) -> Results:
        """The output, and its gradient by every floating tensor."""
        gradients = torch.autograd.grad(output, list(self.floating.values()), _ones(output, upstream))
        return {"output": output.detach(), **dict(zip(self.floating, gradients, strict=True))}

    def utterance(self, item: int, dtype: torch.dtype) -> Problem:
        """The problem of one utterance in another precision, with its own copy of everything, on a CPU."""

        def own(name: str, tensor: Tensor) -> Tensor:
            tensor = (tensor if name in self.shared else tensor[item : item + 1]).detach().cpu()
            return tensor.to(dtype) if tensor.is_floating_point() else tensor

        floating = {name: own(name, tensor).requires_grad_() for name, tensor in self.floating.items()}
        lengths = {name: own(name, tensor) for name, tensor in self.lengths.items()}
        constant = {name: own(name, tensor) for name, tensor in self.constant.items()}
        return replace(self, floating=floating, lengths=lengths, constant=constant)

    @property
    def batch(self) -> int:
        """Utterances."""
        return next(iter(self.lengths.values())).shape[0]


def _ones(output: Tensor, upstream: Tensor | None) -> Tensor:
    return torch.ones_like(output) if upstream is None else upstream


@dataclass(frozen=True)
class Subject:
    """One way to do an operation, forward and backward.

    Attributes:
        name: what the table calls it.
        run: does it, and gives the output and the gradients.
        module: what it imports beyond torch; a row says so where it is missing.
        slow: it is run once, and that run is its time.
        work: the line of the roofline that bounds it.
        foreign: the environment variable that names the Python in which it runs, where that is another one.
    """

    name: str
    run: Callable[[Problem], Results]
    module: str = ""
    slow: bool = False
    work: str = ""
    foreign: str = ""


@dataclass(frozen=True)
class Operation:
    """What the bench knows of an operation at one shape.

    Attributes:
        make: its problem on a device, in a precision; floating tensors are not yet filled.
        subjects: in the order of the table.
        beside: names of the subject that ratios are taken to: the first that could be measured.
        expected: results for one utterance in float64.
        output_tolerance: a difference that is rounding, over the precision's own and the greatest value above 1.
        gradient_tolerance: the same for gradients.
    """

    make: Callable[[torch.device, torch.dtype], Problem]
    subjects: tuple[Subject, ...]
    beside: tuple[str, ...]
    expected: Callable[[Problem], Results]
    output_tolerance: float = 1.0
    gradient_tolerance: float = 1.0


def checked_items(problem: Problem) -> list[int]:
    """The utterances whose results are compared: the first and the last; all count for the shared gradients."""
    return sorted({0, problem.batch - 1})


def expected_results(operation: Operation, problem: Problem) -> Results:
    """The float64 results: of the checked utterances by themselves, and of shared tensors summed over all."""
    kept = checked_items(problem)
    items = range(problem.batch) if problem.shared else kept
    found: dict[str, list[Tensor]] = {}
    for item in items:
        for name, tensor in operation.expected(problem.utterance(item, torch.float64)).items():
            pieces = found.setdefault(name, [])
            if name in problem.shared and pieces:
                pieces[0] += tensor
            elif name in problem.shared or item in kept:
                pieces.append(tensor)
    return {name: torch.cat(pieces) for name, pieces in found.items()}


@dataclass(frozen=True)
class Difference:
    """The greatest differences of a subject's results from the float64 ones, absolute, and whether one is too great."""

    output: float
    gradient: float | None
    wrong: str

    @classmethod
    def between(cls, operation: Operation, problem: Problem, results: Results, expected: Results) -> Difference:
        """Compares everything that the subject gave; a result that is missing or misshapen is an error in itself."""
        kept = checked_items(problem)
        dtype = next(iter(problem.floating.values())).dtype
        differences, wrong = {}, []
        for name, right in expected.items():
            if name not in results:
                wrong.append(f"{name} is missing")
                continue
            given = results[name].detach().cpu()
            given = (given if name in problem.shared else given[kept]).double()
            if given.shape != right.shape:
                wrong.append(f"{name} has shape {tuple(given.shape)}, not {tuple(right.shape)}")
                continue
            found = float((given - right).abs().max())
            tolerance = operation.output_tolerance if name == "output" else operation.gradient_tolerance
            allowed = tolerance * _PRECISION[dtype] * max(1.0, float(right.abs().max()))
            differences[name] = found
            if not found <= allowed:  # a NaN, too
                wrong.append(f"{name} is off by {found:.1e}, and {allowed:.1e} is rounding")
        gradients = [value for name, value in differences.items() if name != "output"]
        return cls(differences.get("output", float("nan")), max(gradients, default=None), "; ".join(wrong))
