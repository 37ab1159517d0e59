"""An interpreter for the few pickle instructions that torch's checkpoints use; nothing is imported or called.

A pickle is a program for a stack machine. This one knows the instructions that build containers, numbers and text, and
a fixed table of names (`_ALLOWED`). Applying one of them makes a description (StoredTensor, StorageRef), never a torch
object, so that listing needs no torch. Every other instruction or name is refused by name, unless the caller hands over
the function that a name is to stand for (`allow`). Instruction set: CPython's Lib/pickletools.py, protocols 2 to 5.

A few bytes of pickle can stand for a structure of astronomic size, since tuples and lists may share their parts. So no
value is ever printed, compared or hashed here unless it is known to be a short text or a number.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from nemo_archive.safety import ArchiveError

ITEM_BYTES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint64": 8, "uint32": 4, "uint16": 2, "uint8": 1, "bool": 1,
    "complex128": 16, "complex64": 8,
    "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1,
}  # fmt: skip
_STORAGE_CLASSES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
}  # fmt: skip


MOST_INSTRUCTIONS = 2_000_000  # a tensor takes about 40; bounds time (1 s) and memory (0.25 GB)
LARGEST_KEY = 1 << 60  # whole numbers beyond it can be chosen to have equal hashes, which makes dicts slow


class StorageRef(NamedTuple):
    """The record `data/<key>`: `numel` elements of `dtype`; dtype "" means bytes whose tensors name their own."""

    key: str
    dtype: str
    numel: int


class StoredTensor(NamedTuple):
    """A tensor as the pickle describes it; offset and strides count elements."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    is_parameter: bool = False
    requires_grad: bool = False


class DType(NamedTuple):
    """A dtype that stands in the pickle as a value, such as `torch.float16`."""

    name: str


class _StorageClass(NamedTuple):
    dtype: str


_DIFFERENTIABLE = ("float", "bfloat", "complex")


class _Allowed(NamedTuple):
    """A name that may be applied to arguments."""

    build: Callable[..., Any]
    from_caller: bool = False


def _shown(value: Any) -> str:
    """The value for a message, if it is one text or number; else its type."""
    if type(value) is str:
        return repr(value[:60])
    return str(value) if type(value) is int and abs(value) < 2**64 else f"a {type(value).__name__}"


def _integers(values: Any) -> tuple[int, ...]:
    if type(values) is not tuple:
        raise ArchiveError(f"a shape or stride is {_shown(values)}")
    for value in values:
        if type(value) is not int or not 0 <= value < 2**63:
            raise ArchiveError(f"a size or stride is {_shown(value)}")
    return values


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> StoredTensor:
    # rest: requires_grad, backward hooks, and metadata (set for lazily conjugated views only)
    if type(storage) is not StorageRef or type(offset) is not int or offset < 0 or any(rest[2:]):
        raise ArchiveError("a tensor of a kind that is not supported (a lazily conjugated or negated view?)")
    return StoredTensor(storage, offset, _integers(shape), _integers(strides), storage.dtype or "uint8")


def _untyped_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> StoredTensor:
    # rest: requires_grad, backward hooks, dtype, metadata
    tensor = _tensor(storage, offset, shape, strides, *rest[:2], *rest[3:])
    if len(rest) < 3 or type(rest[2]) is not DType:
        raise ArchiveError("a tensor without a dtype")
    return tensor._replace(dtype=rest[2].name)


def _parameter(tensor: Any, requires_grad: Any, *_hooks: Any) -> StoredTensor:
    if type(tensor) is not StoredTensor:
        raise ArchiveError("a parameter that is no tensor")
    if requires_grad is True and not tensor.dtype.startswith(_DIFFERENTIABLE):
        raise ArchiveError(f"a parameter of {tensor.dtype} that requires a gradient")
    return tensor._replace(is_parameter=True, requires_grad=requires_grad is True)


def _ordered_dict() -> OrderedDict[Any, Any]:
    return OrderedDict()


def _encode(text: Any, encoding: Any) -> bytes:  # how protocol 2 writes bytes
    if type(text) is not str or type(encoding) is not str or encoding not in ("latin1", "latin-1"):
        raise ArchiveError(f"_codecs.encode of {_shown(text)} to {_shown(encoding)}")
    return text.encode("latin1")


_ALLOWED: dict[str, Any] = {
    "collections.OrderedDict": _Allowed(_ordered_dict),
    "torch._utils._rebuild_tensor_v2": _Allowed(_tensor),
    "torch._utils._rebuild_tensor_v3": _Allowed(_untyped_tensor),
    "torch._utils._rebuild_parameter": _Allowed(_parameter),
    "torch.Size": _Allowed(_integers),
    "_codecs.encode": _Allowed(_encode),
    "torch.storage.UntypedStorage": _StorageClass(""),
    "torch.UntypedStorage": _StorageClass(""),
    **{f"torch.{name}": _StorageClass(dtype) for name, dtype in _STORAGE_CLASSES.items()},
    **{f"torch.cuda.{name}": _StorageClass(dtype) for name, dtype in _STORAGE_CLASSES.items()},
    **{f"torch.{name}": DType(name) for name in ITEM_BYTES},
}


def load_pickle(data: bytes, allow: Mapping[str, Callable[..., Any]] | None = None) -> Any:
    """The structure in `data`: dicts, lists, tuples, scalars, text, bytes and StoredTensors.

    Args:
        data: the pickle.
        allow: further names that it may hold, `module.name`, and the class or function that each is to stand for.
            It is called with what the file says (tensors are StoredTensors), and nothing is imported by name.

    Raises:
        ArchiveError: if it names anything outside the allow-list or is damaged; the caller adds path and member.
    """
    try:
        return _Machine(data, allow or {}).run()
    except (IndexError, KeyError, TypeError, ValueError, OverflowError, struct.error) as error:
        raise ArchiveError(f"damaged pickle: {type(error).__name__} {str(error)[:100]}") from None


class _Machine:
    """The stack machine; `marks` keeps the stacks that a MARK set aside."""

    def __init__(self, data: bytes, allow: Mapping[str, Callable[..., Any]]) -> None:
        self.data, self.position = data, 0
        self.allowed = {**{name: _Allowed(build, from_caller=True) for name, build in allow.items()}, **_ALLOWED}
        self.classes = tuple(build for name, build in allow.items() if isinstance(build, type) and name not in _ALLOWED)
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        data, instructions, memo = self.data, _INSTRUCTIONS, self.memo
        for _ in range(MOST_INSTRUCTIONS):
            position = self.position
            code = data[position]
            # The five most frequent instructions stand here, which halves the time; the others are in the table.
            if code == 0x71:  # BINPUT
                memo[data[position + 1]] = self.stack[-1]
                self.position = position + 2
            elif code == 0x68:  # BINGET
                self.stack.append(memo[data[position + 1]])
                self.position = position + 2
            elif code == 0x4B:  # BININT1
                self.stack.append(data[position + 1])
                self.position = position + 2
            elif code == 0x72:  # LONG_BINPUT
                memo[int.from_bytes(data[position + 1 : position + 5], "little")] = self.stack[-1]
                self.position = position + 5
            elif code == 0x28:  # MARK
                self.marks.append(self.stack)
                self.stack = []
                self.position = position + 1
            elif code == 0x2E:  # STOP
                return self.stack.pop()
            else:
                self.position = position + 1
                instruction = instructions.get(code)
                if instruction is None:
                    raise ArchiveError(f"pickle instruction {_name_of(code)} is refused")
                instruction(self)
        raise ArchiveError(f"a pickle of over {MOST_INSTRUCTIONS} instructions is refused")

    def take(self, length: int) -> bytes:
        start, self.position = self.position, self.position + length
        if self.position > len(self.data):
            raise ValueError("it ends early")
        return self.data[start : self.position]

    def number(self, length: int, *, signed: bool = False) -> int:
        return int.from_bytes(self.take(length), "little", signed=signed)

    def line(self) -> str:
        end = self.data.index(b"\n", self.position)
        text = self.data[self.position : end].decode("utf-8")
        self.position = end + 1
        return text

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def resolve(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise ArchiveError(f"the pickle names {_shown(name)} in {_shown(module)}, which is no name")
        full = f"{module}.{name}"
        if full not in self.allowed:
            raise ArchiveError(f"the pickle names {full[:100]!r}, which is not on the list of what weights may hold")
        self.stack.append(self.allowed[full])

    def stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.resolve(module, name)

    def reduce(self) -> None:
        arguments, name = self.stack.pop(), self.stack.pop()
        if type(name) is not _Allowed or type(arguments) is not tuple:
            raise ArchiveError("the pickle applies something that is not on the list of what weights may hold")
        self.stack.append(name.build(*arguments))

    def new_object(self) -> None:
        arguments, name = self.stack.pop(), self.stack.pop()
        if not (type(name) is _Allowed and name.from_caller and isinstance(name.build, type)):
            raise ArchiveError("the pickle makes an object of a class that is not on the list")
        if type(arguments) is not tuple:
            raise ValueError("arguments that are no tuple")
        self.stack.append(name.build.__new__(name.build, *arguments))

    def persistent_storage(self) -> None:
        reference = self.stack.pop()
        if type(reference) is not tuple or len(reference) < 5 or reference[0] != "storage" or any(reference[5:]):
            raise ArchiveError("a reference to something that is no storage")
        _, storage_class, key, _location, count, *_view = reference
        if type(storage_class) is not _StorageClass:
            raise ArchiveError(f"a storage of a class that is not on the list: {_shown(storage_class)}")
        if type(key) is not str or type(count) is not int or not 0 <= count < 2**60:
            raise ArchiveError(f"storage {_shown(key)} of {_shown(count)} elements")
        self.stack.append(StorageRef(key, storage_class.dtype, count))

    def set_state(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if self._is_from_caller(target):
            _set_state(target, state)
            return
        if type(target) is not OrderedDict or type(state) is not dict or set(state) != {"_metadata"}:
            raise ArchiveError("the pickle sets attributes other than a state dict's _metadata")
        target._metadata = state["_metadata"]  # type: ignore[attr-defined]

    def _is_from_caller(self, value: Any) -> bool:
        return isinstance(value, self.classes)

    def fill_dict(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise ValueError("items for something that is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int, bool, float, type(None)) and not self._is_from_caller(key):
                raise ArchiveError(f"a dict key of type {type(key).__name__}")
            if type(key) is int and abs(key) > LARGEST_KEY:
                raise ArchiveError(f"a dict key of {key.bit_length()} bits")
            target[key] = value

    def fill_list(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise ValueError("items for something that is no list")
        self.stack[-1].extend(items)

    def gather(self, count: int) -> None:
        if len(self.stack) < count:
            raise ValueError("the stack is empty")
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def text(self, size_bytes: int) -> None:
        self.stack.append(self.take(self.number(size_bytes)).decode("utf-8"))

    def raw(self, size_bytes: int) -> None:
        self.stack.append(self.take(self.number(size_bytes)))

    def protocol(self) -> None:
        if (version := self.number(1)) > 5:
            raise ArchiveError(f"pickle protocol {version} is unknown")


def _set_state(target: Any, state: Any) -> None:
    if hasattr(target, "__setstate__"):
        target.__setstate__(state)
    elif type(state) is dict:
        target.__dict__.update(state)
    else:
        raise ValueError(f"a state that is {_shown(state)}")


def _name_of(code: int) -> str:
    import pickletools

    names = [instruction.name for instruction in pickletools.opcodes if ord(instruction.code) == code]
    return f"0x{code:02x}" + (f" ({names[0]})" if names else "")


def _push(value: Any) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(value)


_INSTRUCTIONS: dict[int, Callable[[_Machine], None]] = {
    0x80: _Machine.protocol,
    0x95: lambda m: (m.take(8), None)[1],  # FRAME
    ord("c"): lambda m: m.resolve(m.line(), m.line()),
    0x93: _Machine.stack_global,
    ord("R"): _Machine.reduce,
    0x81: _Machine.new_object,
    ord("Q"): _Machine.persistent_storage,
    ord("b"): _Machine.set_state,
    ord("N"): _push(None),
    0x88: _push(True),
    0x89: _push(False),
    ord("J"): lambda m: m.stack.append(m.number(4, signed=True)),
    ord("M"): lambda m: m.stack.append(m.number(2)),
    0x8A: lambda m: m.stack.append(m.number(m.number(1), signed=True)),  # LONG1
    ord("G"): lambda m: m.stack.append(struct.unpack(">d", m.take(8))[0]),
    0x8C: lambda m: m.text(1),
    ord("X"): lambda m: m.text(4),
    0x8D: lambda m: m.text(8),
    ord("U"): lambda m: m.text(1),  # a str of Python 2
    ord("T"): lambda m: m.text(4),
    ord("C"): lambda m: m.raw(1),
    ord("B"): lambda m: m.raw(4),
    ord(")"): _push(()),
    0x85: lambda m: m.gather(1),
    0x86: lambda m: m.gather(2),
    0x87: lambda m: m.gather(3),
    ord("t"): lambda m: _push(tuple(m.since_mark()))(m),
    ord("]"): lambda m: m.stack.append([]),
    ord("a"): lambda m: m.fill_list([m.stack.pop()]),
    ord("e"): lambda m: m.fill_list(m.since_mark()),
    ord("}"): lambda m: m.stack.append({}),
    ord("s"): lambda m: m.fill_dict([m.stack.pop(-2), m.stack.pop()]),
    ord("u"): lambda m: m.fill_dict(m.since_mark()),
    0x94: lambda m: m.memo.__setitem__(len(m.memo), m.stack[-1]),  # MEMOIZE
    ord("j"): lambda m: m.stack.append(m.memo[m.number(4)]),
}
