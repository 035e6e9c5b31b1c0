"""Group norms that leave the layout of a picture alone, in a graph that OpenVINO has read.

ONNX graphs write a group norm as one instance norm of each group's flattened pixels. OpenVINO's convolutions keep the
channels last, so that every such tensor is brought into another order and back: a fifth of the VAE decoder's time in
bfloat16. From means per channel, which any order can give, the norm is one product and one sum per pixel, fused with
what follows.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_PICTURE = 4
"""Axes of [B,C,H,W]."""


def norm_by_channel(model: Any) -> int:
    """Rewrite the group norms of pictures in place.

    Args:
        model: an openvino.Model with static shapes.

    Returns:
        How many were rewritten. Norms of other shapes, or with factors of their own, stay as they are.
    """
    count = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() != "MVN":
            continue
        last = _normed(node)
        if last is not None:
            before = node.input_value(0).get_node()
            groups = node.input_value(0).get_partial_shape()[1].get_length()
            result = _written(before.input_value(0), groups, node.get_attributes()["eps"])
            result.set_friendly_name(f"{last.get_friendly_name()}/by_channel")
            last.output(0).replace(result.output(0))
            count += 1
    model.validate_nodes_and_infer_types()
    return count


def _normed(node: Any) -> Any | None:
    """The Reshape back to the picture behind a norm that has neither scale nor shift, or None."""
    before = node.input_value(0).get_node()
    if before.get_type_name() != "Reshape" or len(before.input_value(0).get_partial_shape()) != _PICTURE:
        return None
    for kind, neutral in (("Multiply", 1.0), ("Add", 0.0)):
        user = _only_user(node)
        if user is None or user.get_type_name() != kind:
            return None
        factor = next(value.get_node() for value in user.input_values() if value.get_node() != node)
        if not _is_everywhere(factor, neutral):
            return None
        node = user
    last = _only_user(node)
    if last is None or last.get_type_name() != "Reshape":
        return None
    return last if last.get_output_partial_shape(0) == before.input_value(0).get_partial_shape() else None


def _only_user(node: Any) -> Any | None:
    # Shapes are constants by now; what only asks for them does not count.
    users = [port.get_node() for port in node.output(0).get_target_inputs()]
    users = [user for user in users if user.get_type_name() != "ShapeOf"]
    return users[0] if len(users) == 1 else None


def _is_everywhere(node: Any, value: float) -> bool:
    """Whether a factor, which may have been reshaped, is a constant of this value."""
    while node.get_type_name() in ("Reshape", "Convert", "Unsqueeze"):
        node = node.input_value(0).get_node()
    return node.get_type_name() == "Constant" and bool((node.get_data() == value).all())


def _written(x: Any, groups: int, epsilon: float) -> Any:
    """(x - mean) / sqrt(variance + epsilon), as x * factor - offset with one of both per channel."""
    from openvino import opset13 as op

    batch, channels = (x.get_partial_shape()[axis].get_length() for axis in (0, 1))
    kind = np.float16 if x.get_element_type().get_type_name() == "f16" else np.float32

    def mean(values: Any, *axes: int) -> Any:
        return op.reduce_mean(values, np.array(axes, dtype=np.int64), keep_dims=True)

    def grouped(values: Any) -> Any:
        return op.reshape(values, np.array([batch, groups, channels // groups, 1], dtype=np.int64), False)

    def per_channel(values: Any) -> Any:
        spread = op.broadcast(values, np.array([batch, groups, channels // groups, 1], dtype=np.int64))
        return op.reshape(spread, np.array([batch, channels, 1, 1], dtype=np.int64), False)

    def squared(values: Any) -> Any:
        return op.multiply(values, values)

    middle = mean(x, 2, 3)
    means, variances = grouped(middle), grouped(mean(squared(op.subtract(x, middle)), 2, 3))
    # The variance of a group: the mean variance of its channels, and the variance of their means.
    centre = mean(means, 2)
    variance = mean(op.add(variances, squared(op.subtract(means, centre))), 2)
    factor = op.divide(kind(1.0), op.sqrt(op.add(variance, kind(epsilon))))
    return op.subtract(op.multiply(x, per_channel(factor)), per_channel(op.multiply(centre, factor)))
