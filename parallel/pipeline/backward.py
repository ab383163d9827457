"""Backward in two halves: gradients of a stage's input now, those of its weights later.

The input's half runs the nodes of the autograd graph between outputs and input (the spine) and
notes what arrives at each node that a weight hangs on; the weights' half starts there (the idea of
arXiv 2401.10241). Nodes that compute both gradients at once, such as custom functions, run twice.

Guarantees, each asserted in tests/parallel/pipeline/test_backward.py:
- both halves together give the gradients of one backward, bitwise for weights that are used once;
- the input's half touches no weight's gradient;
- the weights' half accumulates through autograd, so hooks on accumulated gradients run;
- weights that are used several times, or that do not meet the input, get their whole gradient.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

Root = tuple[GradientEdge, Tensor]
"""Where backward starts, and the gradient that it starts with."""

Grads = tuple[Tensor | None, ...]

_LEAF = "torch::autograd::AccumulateGrad"


def backward(roots: Sequence[Root]) -> None:
    """Accumulate the gradients of everything that `roots` were computed from."""
    torch.autograd.backward([edge for edge, _ in roots], [grad for _, grad in roots])


def backward_input(
    roots: Sequence[Root], input_tensor: Tensor
) -> tuple[Tensor | None, "DeferredWeights"]:
    """The gradient of `input_tensor` (None where no root depends on it), and what is left to do."""
    graph = _Graph([edge.node for edge, _ in roots], get_gradient_edge(input_tensor).node)
    deferred = DeferredWeights(graph, roots)
    if not graph.spine:
        return None, deferred
    with deferred.recording():
        (gradient,) = torch.autograd.grad(
            [edge for edge, _ in roots],
            [input_tensor],
            [grad for _, grad in roots],
            retain_graph=True,
        )
    return gradient, deferred


class _Graph:
    """The nodes behind some roots: which lie between roots and input, and where weights hang."""

    def __init__(self, roots: Sequence[Node], input_node: Node) -> None:
        users: dict[Node, list[Node]] = {node: [] for node in roots}
        queue = list(users)
        while queue:
            node = queue.pop()
            for child in _children(node):
                if child not in users:
                    users[child] = []
                    queue.append(child)
                users[child].append(node)
        self.spine: set[Node] = {input_node} if input_node in users else set()
        queue = list(self.spine)
        while queue:
            for user in users[queue.pop()]:
                if user not in self.spine:
                    self.spine.add(user)
                    queue.append(user)
        # Sets of nodes have another order in every process, and ranks must work in the same one.
        self._in_order = [node for node in users if node in self.spine]
        self.joints = self._joints(roots)

    def _joints(self, roots: Sequence[Node]) -> dict[Node, set[Node]]:
        """Nodes of the spine with weights beside it, and roots outside it: their leaves."""
        joints: dict[Node, set[Node]] = {}
        for node in self._in_order:
            beside = [child for child in _children(node) if child not in self.spine]
            joints[node] = set().union(*map(_leaves, beside))
        for node in roots:
            if node not in self.spine:
                joints[node] = _leaves(node)
        return {node: leaves for node, leaves in joints.items() if leaves}


class DeferredWeights:
    """The weights' half of a backward; `run` it once."""

    def __init__(self, graph: _Graph, roots: Sequence[Root]) -> None:
        self._joints = graph.joints
        self._seeds: dict[Node, list[Root]] = {}
        for edge, grad in roots:
            if edge.node not in graph.spine:
                self._seeds.setdefault(edge.node, []).append((edge, grad))
        self._recorded = [node for node in self._joints if node not in self._seeds]

    def recording(self) -> "_Hooks":
        """Note what arrives at the joints while backward runs inside."""
        return _Hooks({node: self._recorder(node) for node in self._recorded})

    def _recorder(self, node: Node) -> Callable[[Grads], Grads | None]:
        def record(grads: Grads) -> None:
            self._seeds[node] = [
                (GradientEdge(node, i), grad) for i, grad in enumerate(grads) if grad is not None
            ]

        return record

    def run(self) -> None:
        """Accumulate the gradients of the weights, and free the graph."""
        for joints in _groups(self._joints):
            leaves = set().union(*(self._joints[node] for node in joints))
            seeds = [root for node in joints for root in self._seeds.get(node, [])]
            if not seeds:
                continue
            # With several joints, one may pass gradients on to the next, which has them already.
            clamps = {node: self._clamp(node) for node in joints} if len(joints) > 1 else {}
            with _Hooks(clamps):
                torch.autograd.backward(
                    [edge for edge, _ in seeds],
                    [grad for _, grad in seeds],
                    inputs=[leaf.variable for leaf in leaves],  # type: ignore[attr-defined]
                    retain_graph=True,
                )
        self._joints, self._seeds = {}, {}

    def _clamp(self, node: Node) -> Callable[[Grads], Grads]:
        seeds = {edge.output_nr: grad for edge, grad in self._seeds.get(node, [])}

        def clamp(grads: Grads) -> Grads:
            return tuple(seeds.get(i) for i in range(len(grads)))

        return clamp


class _Hooks:
    """Hooks before nodes, while inside."""

    def __init__(self, hooks: Mapping[Node, Callable[[Grads], Grads | None]]) -> None:
        self._hooks = hooks
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> None:
        self._handles = [node.register_prehook(hook) for node, hook in self._hooks.items()]

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()


def _children(node: Node) -> list[Node]:
    return [child for child, _ in node.next_functions if child is not None]


def _leaves(node: Node) -> set[Node]:
    """The weights that `node` passes gradients to."""
    seen, queue = {node}, [node]
    while queue:
        for child in _children(queue.pop()):
            if child not in seen:
                seen.add(child)
                queue.append(child)
    return {found for found in seen if found.name() == _LEAF}


def _groups(joints: dict[Node, set[Node]]) -> list[list[Node]]:
    """Joints together with all others that share a weight with them."""
    groups: list[tuple[list[Node], set[Node]]] = []
    for node, leaves in joints.items():
        together, shared = [node], set(leaves)
        apart = []
        for members, weights in groups:
            if weights & shared:
                together, shared = members + together, weights | shared
            else:
                apart.append((members, weights))
        groups = [*apart, (together, shared)]
    return [members for members, _ in groups]
