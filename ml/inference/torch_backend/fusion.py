"""What the exporter took apart is put together again: torch has one kernel for each of these. It changes no meaning."""

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch.nn import functional

from ml.inference.torch_backend.operators import cast, div, softmax


def fuse(graph: fx.Graph) -> None:
    """Put together, in place, what can be."""
    for node in list(graph.nodes):
        if node.target is softmax:
            _fuse_attention(graph, node)
        elif node.target is torch.erf:
            _fuse_gelu(graph, node)
        elif node.target is operator.add:
            _fuse_linear(graph, node)


def attend(query: Any, key: Any, value: Any, mask: Any = None, *, is_guarded: bool = False) -> Any:
    """softmax(query·key + mask)·value; key (…, d, L). is_guarded: what a row of -inf gives is finite."""
    if is_guarded:
        mask = mask.clamp(min=torch.finfo(mask.dtype).min)
    return functional.scaled_dot_product_attention(query, key.transpose(-1, -2), value, attn_mask=mask, scale=1.0)


def linear(x: Any, weight: Any, bias: Any) -> Any:
    """x·weight + bias; weight (K, O)."""
    return functional.linear(x, weight.T, bias)


def _fuse_attention(graph: fx.Graph, weights: fx.Node) -> None:
    """MatMul, Add of a mask, Softmax, MatMul; and what guards the softmax of a row that sees nothing. Such a row is
    padding, far from the text where attention has a window: no other row sees it, so anything finite will do.
    """
    scores, mask = weights.args[0], None
    assert isinstance(scores, fx.Node)
    if scores.target is operator.add:
        sides = [side for side in scores.args if isinstance(side, fx.Node)]
        products = [side for side in sides if side.target is torch.matmul]
        if len(products) != 1 or len(sides) != 2:
            return
        (scores,) = products
        (mask,) = [side for side in sides if side is not scores]
    last = weights
    for guard in [user for user in weights.users if user.target is torch.where]:
        if _is_guard(guard, weights):
            last = guard
    is_guarded = last is not weights and mask is not None
    while len(last.users) == 1 and _is_cast(user := next(iter(last.users))):
        last = user
    if scores.target is not torch.matmul or len(last.users) != 1:
        return
    (product,) = last.users
    is_4d = weights.meta["value"].ndim == 4 and weights.kwargs.get("axis", -1) in (-1, 3)
    if product.target is not torch.matmul or product.args[0] is not last or not is_4d:
        return
    query, key = scores.args
    if mask is not None and not _broadens(mask.meta["value"].shape, scores.meta["value"].shape):
        return
    with graph.inserting_before(product):
        fused = graph.call_function(attend, (query, key, product.args[1], mask), {"is_guarded": is_guarded})
    _replace(graph, product, fused)


def _is_cast(node: fx.Node) -> bool:
    """Whether it changes nothing but the precision."""
    to = node.kwargs.get("to")
    return node.target is cast and isinstance(to, torch.dtype) and to.is_floating_point


def _broadens(mask: Sequence[int], scores: Sequence[int]) -> bool:
    """Whether attention takes a mask of this shape."""
    ends = zip(reversed(mask), reversed(scores), strict=False)
    return 2 <= len(mask) <= len(scores) and all(extent in (1, own) for extent, own in ends)


def _is_guard(node: fx.Node, weights: fx.Node) -> bool:
    """Whether it is where(isnan(weights), 0, weights)."""
    is_bad, instead, otherwise = node.args
    if not isinstance(is_bad, fx.Node) or is_bad.target is not torch.isnan or is_bad.args != (weights,):
        return False
    return instead in (0, 0.0) and otherwise is weights


def _fuse_gelu(graph: fx.Graph, erf: fx.Node) -> None:
    """x / √2, Erf, + 1, · x, · 0.5."""
    scaled: Any = erf.args[0]
    if scaled.target is operator.mul:
        x, by = scaled.args[0], scaled.args[1]
        divisor = 1 / by if isinstance(by, float) and by else None
    elif scaled.target is div:
        x, divisor = scaled.args
    else:
        return
    plus = _only_user(erf, operator.add)
    times = _only_user(plus, operator.mul)
    half = _only_user(times, operator.mul)
    if plus is None or times is None or half is None or not isinstance(divisor, float):
        return
    is_known = math.isclose(divisor, math.sqrt(2), rel_tol=1e-6)
    if is_known and 1.0 in plus.args and x in times.args and 0.5 in half.args:
        with graph.inserting_before(half):
            fused = graph.call_function(functional.gelu, (x,))
        _replace(graph, half, fused)


def _fuse_linear(graph: fx.Graph, add: fx.Node) -> None:
    """MatMul with a weight, + bias."""
    for product, bias in (add.args, add.args[::-1]):
        if isinstance(product, fx.Node) and product.target is torch.matmul and len(product.users) == 1:
            x, weight = product.args
            weighs, adds = _known_shape(weight), _known_shape(bias)
            if len(weighs) == 2 and tuple(adds) == tuple(weighs[1:]):
                with graph.inserting_before(add):
                    fused = graph.call_function(linear, (x, weight, bias))
                _replace(graph, add, fused)
                return


def _known_shape(side: object) -> Sequence[int]:
    """Of a weight; of what is none, no dimensions."""
    return side.meta["value"].shape if isinstance(side, fx.Node) and side.op == "get_attr" else ()


def _only_user(node: fx.Node | None, target: object) -> fx.Node | None:
    """The node that takes this one's output, where there is one alone, of this kind."""
    users = list(node.users) if node is not None else []
    return users[0] if len(users) == 1 and users[0].target is target else None


def _replace(graph: fx.Graph, node: fx.Node, fused: fx.Node) -> None:
    fused.meta = node.meta
    node.replace_all_uses_with(fused)
    graph.erase_node(node)
