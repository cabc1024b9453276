"""The code of TorchScript archives: which operators and functions it calls.

TorchScript is a small language whose programs reach the world outside only by operators. Code that a tracer
writes calls PyTorch's tensor operators and the ``forward`` of submodules; if it calls nothing else, running
it computes. Code is not parsed: every name that is called, however it is reached, must be one of those
known, because ``"path".from_file()`` finds an operator as well as ``torch.from_file("path")`` does.

Source: torch/csrc/jit/serialization/python_print.cpp and frontend/lexer.h of PyTorch 2.13.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from ..errors import quote
from .grading import Grade

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MAX_CODE", "torchscript_findings"]

MAX_CODE: Final = 4 << 20
"""Bytes of code in one member that are read."""

_TOKEN: Final = re.compile(
    r"""[ \t\r\n]+|\#[^\n]*|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|[A-Za-z_][A-Za-z0-9_]*"""
    r"""|[0-9][0-9A-Za-z_]*(?:\.[0-9][0-9A-Za-z_]*)?|->|[-+*/%&|^~<>=!@.,:;()\[\]{}]"""
)
_NAME: Final = re.compile(r"[A-Za-z_]\w*", re.ASCII).fullmatch
_FORWARD: Final = re.compile(r"forward\d*", re.ASCII).fullmatch

_BUILTINS: Final = frozenset(
    {"annotate", "bool", "float", "getattr", "int", "isinstance", "len", "list", "range", "str", "tuple",
     "unchecked_cast", "uninitialized"}
)  # fmt: skip
_PRIMITIVES: Final = frozenset(
    {"data", "device", "dtype", "is_cuda", "layout", "max", "min", "NumToTensor", "RaiseException"}
)
_WORDS: Final = frozenset(
    {"and", "assert", "elif", "else", "for", "if", "in", "is", "not", "or", "pass", "return", "while"}
)  # fmt: skip
"""Words of the language that may stand before a parenthesis."""

_OPERATORS: Final = frozenset(
    """
    abs abs_ acos adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
    adaptive_max_pool2d add add_ addbmm addcdiv addcmul addmm affine_grid_generator all allclose
    alpha_dropout amax amin any append arange argmax argmin argsort asin atan atan2 avg_pool1d
    avg_pool2d avg_pool3d baddbmm batch_norm bernoulli bilinear bitwise_and bitwise_not bitwise_or
    bmm broadcast_to broadcast_tensors bucketize cat cdist ceil celu chunk clamp clamp_ clamp_max
    clamp_min clone col2im complex concat constant_pad_nd contiguous conv1d conv2d conv3d
    conv_transpose1d conv_transpose2d conv_transpose3d copy_ cos cosh cosine_similarity cross cumprod
    cumsum dequantize detach device diag diag_embed diagonal dim div div_ dot dropout dropout_ einsum
    elu elu_ embedding embedding_bag empty empty_like eq erf erfc exp expand expand_as eye
    feature_dropout fill_ flatten flip floor floor_divide fmod format frac full full_like gather ge
    gelu get glu grid_sampler group_norm gru gru_cell gt hardshrink hardsigmoid hardsigmoid_ hardswish
    hardswish_ hardtanh hardtanh_ im2col index index_select instance_norm interpolate is_floating_point
    isinf isnan item items keys l1_loss layer_norm le leaky_relu leaky_relu_ lerp linear linspace log
    log10 log1p log2 log_softmax logical_and logical_not logical_or logsigmoid logsumexp lstm lstm_cell
    lt masked_fill masked_fill_ masked_select matmul max max_pool1d max_pool2d max_pool3d maximum mean
    median meshgrid min minimum mish mm movedim mul mul_ multinomial mv narrow native_layer_norm ne neg
    new_empty new_full new_ones new_zeros nll_loss norm normal numel numpy_T one_hot ones ones_like
    outer pad permute pixel_shuffle pixel_unshuffle pow prelu prod quantize_per_channel
    quantize_per_tensor rand rand_like randint randn randn_like reciprocal reflection_pad1d
    reflection_pad2d relu relu6 relu_ remainder repeat repeat_interleave replication_pad1d
    replication_pad2d reshape reshape_as rnn_relu rnn_tanh roll round rrelu rsqrt rsub
    scaled_dot_product_attention scatter scatter_ scatter_add select selu sigmoid sigmoid_ sign silu
    silu_ sin sinh size slice smooth_l1_loss softmax softplus softshrink softsign sort split
    split_with_sizes sqrt square squeeze squeeze_ stack std std_mean sub sub_ sum t tan tanh tanh_
    tensor tensordot tile to topk transpose transpose_ tril triu true_divide type_as unbind unflatten
    unfold unsqueeze unsqueeze_ upsample_bicubic2d upsample_bilinear2d upsample_linear1d
    upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_trilinear3d values var var_mean
    view view_as vstack where zeros zeros_like _convolution _weight_norm _softmax __and__
    __contains__ __getitem__ __is__ __isnot__ __not__ __or__
    """.split()  # noqa: SIM905 - a list of 300 quoted words cannot be read
)
"""Operators of PyTorch that compute from their arguments; none reads or writes a file."""


def torchscript_findings(code: bytes) -> Iterator[tuple[Grade, str]]:
    """Grade and reason of each call in a member of code that is not known to compute only.

    >>> list(torchscript_findings(b"return torch.linear(x, self.weight)"))
    []
    >>> next(torchscript_findings(b"return torch.save(x, 'f')"))
    (<Grade.UNKNOWN: 1>, 'TorchScript code that calls `torch.save`, run when it is called')
    """
    tokens = _tokens(code)
    if tokens is None:
        yield Grade.UNKNOWN, "TorchScript code in a form that PyTorch does not write"
        return
    seen: set[str] = set()
    for at, token in enumerate(tokens):
        called = _called(tokens, at) if _NAME(token) else _value_called(tokens, at)
        if called is not None and called not in seen:
            seen.add(called)
            reason = f"TorchScript code that calls {quote(called, 80)}, run when it is called"
            yield Grade.UNKNOWN, reason


def _tokens(code: bytes) -> list[str] | None:
    """The tokens without spaces and comments; None where there is anything else."""
    if len(code) > MAX_CODE or not code.isascii():
        return None
    text, found, position = code.decode("ascii"), [], 0
    if '"""' in text or "'''" in text:
        return None
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            return None
        position = match.end()
        if text[match.start()] not in " \t\r\n#":
            found.append(match[0])
    return found


def _called(tokens: list[str], at: int) -> str | None:
    """What the name at `at` calls or reaches for, if that is not known; else None."""
    name = tokens[at]
    before = tokens[at - 1] if at else ""
    after = tokens[at + 1] if at + 1 < len(tokens) else ""
    if name in ("torch", "ops") and before != ".":
        return _reached(tokens, at)
    if name in ("import", "from", "__setstate__"):
        return name
    if name == "classes" and tokens[max(at - 2, 0) : at] == ["torch", "."]:
        return "torch.classes"
    if after != "(" or before == "class":
        return None
    if before == "def":
        return None if _FORWARD(name) else name
    if before == ".":
        known = name in _OPERATORS or bool(_FORWARD(name)) or _after_primitives(tokens, at)
    else:
        known = name in _BUILTINS or name in _WORDS
    return None if known else name


def _value_called(tokens: list[str], at: int) -> str | None:
    """A parenthesis after another value than a name calls what it is: ``getattr(x, "save")("path")``."""
    before = tokens[at - 1] if at else ""
    return (
        "the result of a call"
        if tokens[at] == "(" and before[-1:] in {")", "]", '"', "'"}
        else None
    )


def _after_primitives(tokens: list[str], at: int) -> bool:
    return tokens[max(at - 4, 0) : at] == ["ops", ".", "prim", "."] and tokens[at] in _PRIMITIVES


def _reached(tokens: list[str], at: int) -> str | None:
    """``torch.NAME`` and ``ops.prim.NAME``, unless the name is known."""
    path = tokens[at : at + 5]
    if path[:2] == ["torch", "."] and len(path) > 2 and path[2] in _OPERATORS:
        return None
    if path[:4] == ["ops", ".", "prim", "."] and len(path) > 4 and path[4] in _PRIMITIVES:
        return None
    return "".join(path[: 3 if path[0] == "torch" else 5])
