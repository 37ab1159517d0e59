"""Hostile pickles in checkpoints: nothing that they name is imported, nothing called, nothing grows without bound."""

from __future__ import annotations

import io
import pickle
import struct
import warnings

import pytest
import torch

from nemo_archive import open_archive


class Payload:
    """Pickled, it is a call of `function(*arguments)`."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def _dumped(made, function, *arguments, protocol=2):
    return made.checkpoint(pickle.dumps({"w": Payload(function, *arguments)}, protocol))


def os_system(made):
    import os

    return _dumped(made, os.system, made.command)


def os_system_by_protocol_4(made):
    import os

    return _dumped(made, os.system, made.command, protocol=4)


def builtins_eval(made):
    return _dumped(made, eval, f"__import__('os').system({made.command!r})")


def builtins_exec(made):
    return _dumped(made, exec, f"import os; os.system({made.command!r})")


def builtins_getattr(made):
    return made.checkpoint(b"\x80\x02c__builtin__\ngetattr\n" + made.text("x") + made.text("y") + b"\x86R.")


def subprocess_popen(made):
    import subprocess

    return _dumped(made, subprocess.Popen, ["touch", str(made.canary)])


def torch_load_gadget(made):  # torch.load of bytes that hold another pickle, this time a trusted one
    inner = pickle.dumps(Payload(eval, "1"), 2)
    return made.checkpoint(made.state_dict(b"ctorch.storage\n_load_from_bytes\n" + _raw(inner) + b"\x85R"))


def torch_jit_gadget(made):
    return made.checkpoint(made.state_dict(b"ctorch.jit._pickle\nrestore_type_tag\n)R"))


def numpy_gadget(made):
    return made.checkpoint(made.state_dict(b"cnumpy.testing._private.utils\nrunstring\n" + made.text("1") + b"}\x86R"))


def own_module(made):
    return made.checkpoint(made.state_dict(b"cnemo_payload\nrun\n)R"))


def storage_lookalike(made):
    return made.checkpoint(made.state_dict(b"ctorch.storage\nUntypedStorage2\n)R"))


def dotted_attribute(made):  # protocol 4 walks from an allowed module to any attribute
    return made.checkpoint(b"\x80\x04" + _short("torch._utils") + _short("_rebuild_tensor_v2.__globals__") + b"\x93.")


def allowed_name_with_a_newline(made):
    return made.checkpoint(b"\x80\x04" + _short("collections") + _short("OrderedDict\n") + b"\x93.")


def name_in_other_letters(made):  # a Cyrillic о, which looks the same
    return made.checkpoint(b"\x80\x04" + _short("c\u043ellections") + _short("OrderedDict") + b"\x93.")


def name_of_half_a_character(made):
    return made.checkpoint(b"\x80\x04\x8c\x03\xed\xa0\x80" + _short("x") + b"\x93.")


def name_that_is_a_tuple_of_tuples(made):  # whoever prints it prints 2**60 brackets
    return made.checkpoint(b"\x80\x04)" + b"\x94h\x00\x86" + _doubling(60) + _short("x") + b"\x93.")


def inst(made):
    return made.checkpoint(b"\x80\x02(" + made.text(made.command) + b"ios\nsystem\n.")


def obj(made):
    return made.checkpoint(b"\x80\x02(cos\nsystem\n" + made.text(made.command) + b"o.")


def obj_of_an_allowed_class(made):
    return made.checkpoint(b"\x80\x02(ccollections\nOrderedDict\no.")


def newobj(made):
    return made.checkpoint(b"\x80\x02ccollections\nOrderedDict\n)\x81.")


def newobj_ex(made):
    return made.checkpoint(b"\x80\x04ccollections\nOrderedDict\n)}\x92.")


def extension_code(made):
    return made.checkpoint(b"\x80\x02\x82\x01.")


def textual_persistent_id(made):
    return made.checkpoint(b"\x80\x02Pevil\n.")


def persistent_id_that_is_text(made):
    return made.checkpoint(b"\x80\x02" + made.text("storage") + b"Q.")


def persistent_id_of_another_class(made):
    return made.checkpoint(
        b"\x80\x02(" + made.text("storage") + b"ccollections\nOrderedDict\n" + made.text("0") + b"NK\x04tQ."
    )


def persistent_id_of_negative_size(made):
    return made.checkpoint(made.state_dict(made.tensor(count=-4)))


def build_sets_attributes(made):
    return made.checkpoint(b"\x80\x02ccollections\nOrderedDict\n)R}" + made.text("__class__") + made.text("x") + b"sb.")


def build_on_a_tensor(made):
    return made.checkpoint(made.state_dict(made.tensor() + b"}" + made.text("data") + b"Nsb"))


def call_of_a_tensor(made):
    return made.checkpoint(made.state_dict(made.tensor() + b")R"))


def memo_bomb(made):
    return made.checkpoint(b"\x80\x02)q\0h\0\x86" + _doubling(60) + b"q\x64}" + made.text("w") + b"h\x64s.")


def list_in_itself(made):
    return made.checkpoint(made.state_dict(b"]q\0h\0a"))


def shape_of_tuples_of_tuples(made):
    head, tail = made.tensor().split(made.tuple((4,)), 1)
    return made.checkpoint(made.state_dict(head + b")q\0h\0\x86" + _doubling(60) + tail))


def deep_nesting(made):
    return made.checkpoint(made.state_dict(b"]" * 20_000 + b"a" * 19_999))


def huge_number(made):
    return made.checkpoint(made.state_dict(b"\x8b" + struct.pack("<l", 1 << 30) + b"\x7f"))


def number_of_negative_length(made):
    return made.checkpoint(made.state_dict(b"\x8b\xff\xff\xff\xff"))


def huge_frame(made):
    return made.checkpoint(b"\x80\x04\x95" + b"\xff" * 8 + b"\x8c")


def huge_text(made):
    return made.checkpoint(b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f" + b"x.")


def huge_bytearray(made):
    return made.checkpoint(b"\x80\x05\x96" + b"\xff" * 7 + b"\x7f" + b"x.")


def out_of_band_buffer(made):
    return made.checkpoint(b"\x80\x05\x97.")


def keys_of_equal_hash(made):
    keys = b"".join(made.number(index * (2**61 - 1)) + b"N" for index in range(1, 1000))
    return made.checkpoint(b"\x80\x02}(" + keys + b"u.")


def key_that_is_a_tuple(made):
    return made.checkpoint(b"\x80\x02}))\x86Ns.")


def millions_of_instructions(made):
    return made.checkpoint(b"\x80\x02" + b"N" * 2_100_000 + b".")


def too_large_a_pickle(made):
    return made.checkpoint(b"\x80\x02B" + struct.pack("<L", 33 << 20) + bytes(33 << 20) + b".")


def pops_from_nothing(made):
    return made.checkpoint(b"\x80\x02s.")


def ends_early(made):
    return made.checkpoint(b"\x80\x02}q")


def future_protocol(made):
    return made.checkpoint(b"\x80\x09}.")


def storage_that_is_not_there(made):
    return made.checkpoint(made.state_dict(made.tensor(key="../../../etc/passwd")))


def storage_of_another_size(made):
    return made.checkpoint(made.state_dict(made.tensor(count=400)))


def tensor_beyond_its_storage(made):
    return made.checkpoint(made.state_dict(made.tensor(shape=(5,))))


def offset_beyond_its_storage(made):
    return made.checkpoint(made.state_dict(made.tensor(offset=1 << 40)))


def negative_offset(made):
    return made.checkpoint(made.state_dict(made.tensor(offset=-4)))


def negative_stride(made):
    return made.checkpoint(made.state_dict(made.tensor(strides=(-1,))))


def stride_beyond_its_storage(made):
    return made.checkpoint(made.state_dict(made.tensor(shape=(2,), strides=(1 << 50,))))


def strides_of_other_axes(made):
    return made.checkpoint(made.state_dict(made.tensor(strides=(1, 1))))


def stride_of_zero_makes_terabytes(made):
    return made.checkpoint(made.state_dict(made.tensor(shape=(1 << 40,), strides=(0,))))


def empty_tensor_of_astronomic_shape(made):
    return made.checkpoint(made.state_dict(made.tensor(shape=(0, 1 << 61, 1 << 61), strides=(1, 1, 1))))


def hundred_axes(made):
    return made.checkpoint(made.state_dict(made.tensor(shape=(1,) * 100, strides=(1,) * 100)))


def name_that_paints_the_terminal(made):
    return made.checkpoint(made.state_dict(made.tensor(), key="w\x1b[2J"))


def names_of_megabytes(made):  # each of 20,000 references to one tensor would get a name of 100,000 characters
    tensors = b"](" + made.tensor() + b"q\0" + b"h\0" * 20_000 + b"e"
    return made.checkpoint(made.state_dict(tensors, key="k" * 100_000))


def gradient_of_an_integer(made):
    program = made.tensor().replace(b"FloatStorage", b"IntStorage")
    return made.checkpoint(
        made.state_dict(b"ctorch._utils\n_rebuild_parameter\n" + program + b"\x88ccollections\nOrderedDict\n)R\x87R")
    )


def legacy_checkpoint_with_a_payload(made):
    import os

    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save({"w": Payload(os.system, made.command)}, stream, _use_new_zipfile_serialization=False)
    return made.weights(stream.getvalue())


def bare_pickle(made):
    import os

    return made.weights(pickle.dumps(Payload(os.system, made.command)))


def bare_pickle_of_protocol_0(made):
    import os

    return made.weights(pickle.dumps(Payload(os.system, made.command), 0))


def _raw(data: bytes) -> bytes:
    return b"B" + struct.pack("<L", len(data)) + data


def _short(text: str) -> bytes:
    data = text.encode()
    return b"\x8c%c" % len(data) + data


def _doubling(times: int) -> bytes:
    return b"".join(b"q%ch%c\x86" % (index, index) for index in range(1, times))


UNLISTED = "which is not on the list of what weights may hold"
ATTACKS = {
    os_system: f"the pickle names 'posix.system', {UNLISTED}",
    os_system_by_protocol_4: f"the pickle names 'posix.system', {UNLISTED}",
    builtins_eval: f"the pickle names '__builtin__.eval', {UNLISTED}",
    builtins_exec: f"the pickle names '__builtin__.exec', {UNLISTED}",
    builtins_getattr: f"the pickle names '__builtin__.getattr', {UNLISTED}",
    subprocess_popen: f"the pickle names 'commands.Popen', {UNLISTED}",  # what Python 2 called it
    torch_load_gadget: f"the pickle names 'torch.storage._load_from_bytes', {UNLISTED}",
    torch_jit_gadget: f"the pickle names 'torch.jit._pickle.restore_type_tag', {UNLISTED}",
    numpy_gadget: f"the pickle names 'numpy.testing._private.utils.runstring', {UNLISTED}",
    own_module: f"the pickle names 'nemo_payload.run', {UNLISTED}",
    storage_lookalike: f"the pickle names 'torch.storage.UntypedStorage2', {UNLISTED}",
    dotted_attribute: f"the pickle names 'torch._utils._rebuild_tensor_v2.__globals__', {UNLISTED}",
    allowed_name_with_a_newline: f"the pickle names 'collections.OrderedDict\\n', {UNLISTED}",
    name_in_other_letters: f"the pickle names 'c\u043ellections.OrderedDict', {UNLISTED}",
    name_of_half_a_character: "damaged pickle: UnicodeDecodeError",
    name_that_is_a_tuple_of_tuples: "the pickle names 'x' in a tuple, which is no name",
    inst: "pickle instruction 0x69 (INST) is refused",
    obj: f"the pickle names 'os.system', {UNLISTED}",
    obj_of_an_allowed_class: "pickle instruction 0x6f (OBJ) is refused",
    newobj: "the pickle makes an object of a class that is not on the list",
    newobj_ex: "pickle instruction 0x92 (NEWOBJ_EX) is refused",
    extension_code: "pickle instruction 0x82 (EXT1) is refused",
    textual_persistent_id: "pickle instruction 0x50 (PERSID) is refused",
    persistent_id_that_is_text: "a reference to something that is no storage",
    persistent_id_of_another_class: "a storage of a class that is not on the list: a _Allowed",
    persistent_id_of_negative_size: "storage '0' of -4 elements",
    build_sets_attributes: "the pickle sets attributes other than a state dict's _metadata",
    build_on_a_tensor: "the pickle sets attributes other than a state dict's _metadata",
    call_of_a_tensor: "the pickle applies something that is not on the list of what weights may hold",
    memo_bomb: "the pickle holds itself, or is nested absurdly deep",
    list_in_itself: "the pickle holds itself, or is nested absurdly deep",
    shape_of_tuples_of_tuples: "a size or stride is a tuple",
    deep_nesting: "the pickle holds itself, or is nested absurdly deep",
    huge_number: "pickle instruction 0x8b (LONG4) is refused",
    number_of_negative_length: "pickle instruction 0x8b (LONG4) is refused",
    huge_frame: "damaged pickle: ",
    huge_text: "damaged pickle: ValueError it ends early",
    huge_bytearray: "pickle instruction 0x96 (BYTEARRAY8) is refused",
    out_of_band_buffer: "pickle instruction 0x97 (NEXT_BUFFER) is refused",
    keys_of_equal_hash: "a dict key of 61 bits",
    key_that_is_a_tuple: "a dict key of type tuple",
    millions_of_instructions: "a pickle of over 2000000 instructions is refused",
    too_large_a_pickle: "a data.pkl of 34603016 bytes is refused (at most 33554432)",
    pops_from_nothing: "damaged pickle: IndexError",
    ends_early: "damaged pickle: IndexError",
    future_protocol: "pickle protocol 9 is unknown",
    storage_that_is_not_there: "storage '../../../etc/passwd' is missing",
    storage_of_another_size: "storage '0' has 16 bytes where 1600 belong",
    tensor_beyond_its_storage: "tensor 'w' reaches beyond its storage",
    offset_beyond_its_storage: "tensor 'w' reaches beyond its storage",
    negative_offset: "a tensor of a kind that is not supported",
    negative_stride: "a size or stride is -1",
    stride_beyond_its_storage: "tensor 'w' reaches beyond its storage",
    strides_of_other_axes: "tensor 'w': 1 axes and 2 strides",
    stride_of_zero_makes_terabytes: "tensor 'w' makes 4398046511104 bytes of 16 by repeating them",
    empty_tensor_of_astronomic_shape: "tensor 'w' has sizes or strides beyond what a machine can address",
    hundred_axes: "tensor 'w': 100 axes and 100 strides",
    name_that_paints_the_terminal: "control characters in the name of tensor 'w\\x1b[2J'",
    names_of_megabytes: "the names of its tensors are absurdly long",
    gradient_of_an_integer: "a parameter of int32 that requires a gradient",
    legacy_checkpoint_with_a_payload: "an old torch checkpoint that cannot be loaded safely",
    bare_pickle: "is no torch checkpoint but a Python pickle, perhaps an old PyTorch checkpoint",
    bare_pickle_of_protocol_0: "is no torch checkpoint but a text file that begins with 'cposix\\nsystem\\n",
}
"""What makes each file: what is said of it."""


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_a_hostile_pickle_is_refused_by_rule_and_nothing_runs(attack, made, refused):
    error = refused(attack(made))
    assert error.member == "model_weights.ckpt"
    assert ATTACKS[attack] in error.rule


def test_names_that_the_caller_allows_stand_for_what_the_caller_gives_and_for_nothing_else(made, canary):
    path = made.checkpoint(made.state_dict(b"cnemo_payload\nrun\n" + made.number(3) + b"\x85R"))
    with open_archive(path, allow={"nemo_payload.run": lambda number: number + 1}) as archive:
        assert archive.checkpoint().content == {"w": 4}
    with (
        open_archive(os_system(made), allow={"nemo_payload.run": int}) as archive,
        pytest.raises(Exception, match=UNLISTED),
    ):
        archive.checkpoint()
