"""How many operations a pass is, what the device could do at best, and what was calculated before anything ran.

Operations are those that the model's definition asks for: two for each weight and token, attention over half of the
context (it is causal). Backward goes from the head to the lowest site, towards the inputs only: parameters are frozen.
It is as many operations as the layers above the site in forward; of attention 2.5 times as many, because its scores are
computed anew.
"""

from dataclasses import dataclass

from benchmarks.gpu.end_to_end.case import Case
from benchmarks.gpu.end_to_end.lm_shape import GEMMA_2_2B, LLAMA_3_1_8B, LmShape

SCORES_BACKWARD = 2.5
PEAKS = {  # part of a device's name -> dense bf16 operations per second by its maker's data sheet; the first that fits
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
}

CALCULATED_SOURCE = (
    "calculated, not measured, from two rates measured on an H200, 790 TFLOP/s of bf16 products and 4.3 TB/s of "
    "copies: the language model at 50 % of the first, encoding at 85 % of it, projection at the second; context 2,048, "
    "L0 64"
)
PRODUCT_RATE, COPY_RATE = 790e12, 4.3e12
MODEL_SHARE, ENCODE_SHARE = 0.5, 0.85
CONTEXT, ACTIVE = 2048, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Microseconds per token."""

    forward: float
    backward: float
    encode: float
    project: float

    @property
    def bare(self) -> float:
        """Without SAEs."""
        return self.forward + self.backward

    @property
    def engine(self) -> float:
        """With them."""
        return self.bare + self.encode + self.project


CALCULATED = {  # (model, sites, latents) -> the table of the design, from before there was an engine
    (GEMMA_2_2B.name, 1, 16_384): Cost(forward=13.8, backward=8.8, encode=0.11, project=0.07),
    (GEMMA_2_2B.name, 1, 65_536): Cost(forward=13.8, backward=8.8, encode=0.45, project=0.07),
    (GEMMA_2_2B.name, 1, 1_048_576): Cost(forward=13.8, backward=8.8, encode=7.2, project=0.07),
    (GEMMA_2_2B.name, 26, 16_384): Cost(forward=13.8, backward=14.2, encode=2.9, project=1.8),
    (GEMMA_2_2B.name, 26, 65_536): Cost(forward=13.8, backward=14.2, encode=11.7, project=1.8),
    (LLAMA_3_1_8B.name, 1, 131_072): Cost(forward=39.4, backward=22.0, encode=1.6, project=0.12),
    (LLAMA_3_1_8B.name, 32, 32_768): Cost(forward=39.4, backward=40.2, encode=12.8, project=3.9),
    (LLAMA_3_1_8B.name, 32, 131_072): Cost(forward=39.4, backward=40.2, encode=51.0, project=3.9),
}


def linear_flops(shape: LmShape) -> float:
    """Of the weights of all layers, per token."""
    attention = 2 * (shape.heads + shape.kv_heads) * shape.head_width
    return 2.0 * shape.layers * shape.width * (attention + 3 * shape.mlp_width)


def scores_flops(shape: LmShape, context: float) -> float:
    """Of queries with keys and of scores with values, of all layers, per token; half of the context is seen."""
    return 2.0 * 2 * shape.layers * shape.heads * shape.head_width * context / 2


def head_flops(shape: LmShape) -> float:
    """Of all logits of a token."""
    return 2.0 * shape.width * shape.vocabulary


def forward_flops(shape: LmShape, context: float) -> float:
    """Per token."""
    return linear_flops(shape) + scores_flops(shape, context) + head_flops(shape)


def backward_flops(shape: LmShape, layers_above: int, context: float) -> float:
    """Per token, down to the output of the layer below `layers_above` others."""
    share = layers_above / shape.layers
    layers = linear_flops(shape) + SCORES_BACKWARD * scores_flops(shape, context)
    return share * layers + head_flops(shape)


def model_flops(case: Case, context: float) -> float:
    """Forward and backward of the language model alone, per token."""
    return forward_flops(case.shape, context) + backward_flops(case.shape, case.layers_above, context)


def calculate(case: Case) -> Cost:
    """The formulas behind the table, for any case."""
    shape, model_rate = case.shape, MODEL_SHARE * PRODUCT_RATE
    encode = 2.0 * case.sites * shape.width * case.latents / (ENCODE_SHARE * PRODUCT_RATE)
    project = 2.0 * case.sites * ACTIVE * shape.width / COPY_RATE
    return Cost(
        forward=1e6 * forward_flops(shape, CONTEXT) / model_rate,
        backward=1e6 * backward_flops(shape, case.layers_above, CONTEXT) / model_rate,
        encode=1e6 * encode,
        project=1e6 * project,
    )


def peak_rate(device_name: str, measured: float) -> tuple[float, str]:
    """Operations per second that utilisation is held against, and where the number is from."""
    for part, rate in PEAKS.items():
        if part in device_name:
            return rate, f"dense bf16 of the {part} by its data sheet"
    return measured, "a square product, measured here: the device is not in the table of peaks"
