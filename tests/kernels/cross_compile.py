"""Compile every Triton kernel for GPUs that are not here, and read from the binary what it would take there.

    python tests/kernels/cross_compile.py [--arch 90] [--only append]

One JSON object a line: registers and stack (spill) bytes per thread, shared memory per block, and how many tensor-core
and bulk-copy instructions the machine code holds. Blocks, warps and stages are those of the plan for that architecture.
"""

import argparse
import importlib
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gradsae_kernels.emit.bins import PACK_BLOCK
from gradsae_kernels.emit.fill import SCAN_BLOCK
from gradsae_kernels.emit.firing import Firing, Rule
from gradsae_kernels.emit.plan import EmitPlan, EmitVariant, choose_plan, plan_for
from gradsae_kernels.project.triton_kernel import BLOCK_P, PROJECT_BLOCK_D, PROJECT_WARPS

LARGEST = torch.finfo(torch.bfloat16).max
ARCHITECTURES = (80, 90, 100)
SCREENED = (Rule.FOLDED, Rule.TWO_SIDED, Rule.MAGNITUDE)  # a screen folds the one-sided rules
MARKS = {
    "tensor core": r"\b(HGMMA|HMMA|UTC\w*MMA)",
    "bulk copy": r"\bUTMALDG",
    "append": r"\bATOMG",
    "spill": r"\b(LDL|STL)\b",
}

TYPES = {
    "start_C above_C below_C bar_N slack_N slack_C start_T u_NT values": "*fp32",
    "projections coefficients sums bias_D decoded_ND": "*fp32",
    "counts_N counts_B indices latents above_N": "*i32",
    "records begin_B tokens starts indptr": "*i64",
    "full_RD norms_3R": "*fp32",
    "low_RD": "*bf16",
    "N C D T R k capacity base stripes stripe_blocks num_pairs": "i32",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Specimen:
    """One kernel with one choice of compile-time constants."""

    name: str
    kernel: str  # module and first word of the function
    constants: dict[str, Any]
    x_dtype: str = "bf16"  # of the tokens' rows
    w_dtype: str = "bf16"  # of the latents' rows
    num_warps: int = 4
    num_stages: int = 3
    fp_fusion: bool = True


def specimens(architecture: int) -> Iterator[Specimen]:
    """All kernels as they are launched on this architecture."""
    yield from _products(architecture)
    yield from _scans()
    yield from _finishes()
    yield from _gathers()


def _scans() -> Iterator[Specimen]:
    for rule in Rule:
        for screen in (False, True) if rule in SCREENED else (False,):
            constants = {"RULE": int(rule), "BLOCK_T": SCAN_BLOCK, **_absent(rule, screen=screen)}
            yield Specimen(name=_name("scan", rule, screen), kernel="emit.triton_kernel.scan", constants=constants)


def _finishes() -> Iterator[Specimen]:
    """What runs before and after a product, at its smallest and its largest."""
    for ordered in (False, True):
        name = f"pack {'ordered' if ordered else 'by rank'}"
        constants: dict[str, Any] = {"ORDERED": ordered, "BLOCK": PACK_BLOCK}
        yield Specimen(name=name, kernel="emit.row_kernel.pack", constants=constants, num_warps=1)
    for width, warps in ((576, 2), (4096, 8), (16384, 16)):
        constants = {"LARGEST": LARGEST, "BLOCK_D": 1 << (width - 1).bit_length()}
        yield Specimen(name=f"lower {width}", kernel="emit.row_kernel.lower", constants=constants, num_warps=warps)
    for room, warps in ((256, 1), (512, 1), (1024, 2), (8192, 16)):
        constants = {"SIGNED": True, "ROOM": room}
        yield Specimen(
            name=f"select {room}", kernel="encode_topk.triton_kernel.select", constants=constants, num_warps=warps
        )
    for room in (1024, 8192):
        yield Specimen(
            name=f"bar {room}", kernel="encode_topk.triton_kernel.bar", constants={"SIGNED": True, "ROOM": room}
        )


def _gathers() -> Iterator[Specimen]:
    """The operators that read decoder rows, for each pair of types; they spell their fused operations out."""
    for x_dtype, w_dtype in (("bf16", "bf16"), ("fp32", "fp32"), ("fp32", "bf16"), ("fp16", "fp16")):
        types: dict[str, Any] = {"x_dtype": x_dtype, "w_dtype": w_dtype, "fp_fusion": False}
        constants = {"BLOCK_P": BLOCK_P, "BLOCK_D": PROJECT_BLOCK_D}
        name = f"{x_dtype} {w_dtype}"
        yield Specimen(
            name=f"project {name}",
            kernel="project.triton_kernel.project",
            constants=constants,
            num_warps=PROJECT_WARPS,
            **types,
        )
        constants = {"UNROLL": 4, "BLOCK_D": 1024}
        yield Specimen(name=f"influence {name}", kernel="project.triton_kernel.influence", constants=constants, **types)
        if x_dtype == w_dtype:
            yield Specimen(name=f"decode {w_dtype}", kernel="decode.triton_kernel.decode", constants=constants, **types)


def _products(architecture: int) -> Iterator[Specimen]:
    """The kernels that hold a matrix product, for each rule that they are launched with."""
    wide = choose_plan(divmod(architecture, 10), torch.bfloat16, torch.bfloat16, 2304, 65_536)
    narrow = choose_plan(divmod(architecture, 10), torch.bfloat16, torch.bfloat16, 2304, 16_384)
    screened = choose_plan(divmod(architecture, 10), torch.float32, torch.float32, 2304, 65_536)
    for rule in Rule:
        yield _product(wide, rule)
        if rule not in (Rule.BAR, Rule.MAGNITUDE):
            yield _product(narrow, rule)
        if rule in SCREENED:
            yield _product(screened, rule)


def _product(plan: EmitPlan, rule: Rule) -> Specimen:
    plan = plan_for(plan, Firing(rule=rule, start_C=torch.empty(0)))
    constants = {
        "RULE": int(rule),
        "PRECISION": "ieee",
        "BLOCK_N": plan.block_n,
        "BLOCK_C": plan.block_c,
        "BLOCK_D": plan.block_d,
        "BULK": plan.bulk,
        **_absent(rule, screen=plan.screen),
    }
    if plan.variant is EmitVariant.APPEND:
        constants |= {"GROUP": plan.group, "PACK": plan.pack}
    return Specimen(
        name=_name(plan.variant, rule, plan.screen),
        kernel=f"emit.triton_kernel.{plan.variant}",
        constants=constants,
        num_warps=plan.num_warps,
        num_stages=plan.num_stages,
    )


def _name(variant: str, rule: Rule, screen: bool) -> str:
    return f"{variant} {rule.name.lower()}{' screen' if screen else ''}"


def _absent(rule: Rule, *, screen: bool) -> dict[str, None]:
    """Pointers that this rule is launched without."""
    absent = {"above_C", "below_C", "bar_N"}
    absent -= {Rule.ABOVE: {"above_C"}, Rule.TWO_SIDED: {"above_C", "below_C"}}.get(rule, set())
    absent -= {"bar_N"} if rule in (Rule.BAR, Rule.MAGNITUDE) or (screen and rule is Rule.FOLDED) else set()
    return dict.fromkeys(absent | (set() if screen else {"slack_N", "slack_C"}))


def compile_for(specimen: Specimen, architecture: int) -> dict[str, Any]:
    """Compile, and say what the machine code needs."""
    module, word = specimen.kernel.rsplit(".", 1)
    kernel = getattr(importlib.import_module(f"gradsae_kernels.{module}"), f"{word}_kernel")
    types = {name: kind for names, kind in TYPES.items() for name in names.split()}
    constants = specimen.constants
    signature, aligned = {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in ("x_ND", "w_CD", "grad_ND"):
            signature[name] = _operand(name, specimen)
        else:
            signature[name] = types[name]
        if signature[name].startswith("*") or name in ("D", "capacity"):
            aligned[(place,)] = [["tt.divisibility", 16]]
    compiled = triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned),
        target=GPUTarget("cuda", architecture, 32),
        options={
            "num_warps": specimen.num_warps,
            "num_stages": specimen.num_stages,
            "enable_fp_fusion": specimen.fp_fusion,
        },
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(compiled.asm["cubin"])
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
        code = _tool("nvdisasm", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    counts = {mark: len(re.findall(pattern, code)) for mark, pattern in MARKS.items()}
    counts["append"] *= 32 * specimen.num_warps
    return {"registers": int(found[1]), "stack": int(found[2]), "shared": compiled.metadata.shared, **counts}


def _operand(name: str, specimen: Specimen) -> str:
    dtype = specimen.w_dtype if name == "w_CD" else specimen.x_dtype
    if not specimen.constants.get("BULK"):
        return f"*{dtype}"
    rows = specimen.constants["BLOCK_C" if name == "w_CD" else "BLOCK_N"]
    return f"tensordesc<{dtype}[{rows},{specimen.constants['BLOCK_D']}]>"


def _tool(name: str, *arguments: str) -> str:
    program = next((Path(triton.__file__).parent / "backends" / "nvidia" / "bin").glob(name))
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", type=int, choices=ARCHITECTURES, action="append")
    parser.add_argument("--only", default="", help="names that begin with this")
    arguments = parser.parse_args()
    for architecture in arguments.arch or ARCHITECTURES:
        for specimen in specimens(architecture):
            if specimen.name.startswith(arguments.only):
                facts = {"kernel": specimen.name, "arch": architecture, **compile_for(specimen, architecture)}
                print(json.dumps(facts), flush=True)
