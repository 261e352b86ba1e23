"""The two predicated appends of the emitting kernels, in PTX: Triton's own scatter spills or serialises there.

Operands are the elements of a tile, `pack` at a time. Addresses are formed only for an element that fires: where none
does, an element costs a comparison and a branch that is not taken.
"""

_STORE = """
    cvt.u64.u32 %bin, {bin};
    cvt.u64.u32 %to, {capacity};
    mul.lo.u64 %to, %to, %bin;
    cvt.u64.u32 %bin, %at;
    add.u64 %to, %to, %bin;
    shl.b64 %to, %to, 3;
    add.u64 %to, %to, {records};
    st.global.v2.b32 [%to], {{{value}, {latent}}};
"""

_APPEND = """
    setp.gtu.f32 %fires, {over}, 0f00000000;
    @!%fires bra NEXT{i};
    cvt.u64.u32 %bin, {bin};
    shl.b64 %to, %bin, 2;
    add.u64 %to, %to, {counts};
    atom.global.relaxed.gpu.add.u32 %at, [%to], 1;
    setp.lt.u32 %fires, %at, {capacity};
    @!%fires bra NEXT{i};
    {store}
    NEXT{i}:
"""

APPEND_OPERANDS = ("over", "value", "bin", "latent", "counts", "records", "capacity")


def append(pack: int) -> str:
    """Append {value, latent} to the bin where over > 0 or is NaN; the bin's counter goes on counting past its room.

    With a pack of 4 one comparison of the largest dismisses four elements.
    """
    lines = ["{", ".reg .pred %fires;", ".reg .u32 %at;", ".reg .u64 %to, %bin;", ".reg .f32 %most;"]
    elements = [{name: f"${pack * (place + 1) + i}" for place, name in enumerate(APPEND_OPERANDS)} for i in range(pack)]
    if pack > 1:
        lines.append(f"mov.f32 %most, {elements[0]['over']};")
        lines += [f"max.NaN.f32 %most, %most, {element['over']};" for element in elements[1:]]
        lines += ["setp.gtu.f32 %fires, %most, 0f00000000;", "@!%fires bra DONE;"]
    for i, element in enumerate(elements):
        lines.append(_APPEND.format(i=i, store=_STORE.format(**element), **element))
    results = [f"mov.b32 ${i}, 0;" for i in range(pack)]  # last: a result may share its register with an operand
    return "\n".join([*lines, "DONE:", *results, "}"])


def append_constraints(pack: int) -> str:
    """Registers of `append`: one result, four 32-bit operands, two addresses and the capacity, `pack` times each."""
    return ",".join(["=r"] * pack + ["r"] * (4 * pack) + ["l"] * (2 * pack) + ["r"] * pack)


PLACE = f"""{{
    .reg .pred %fires;
    .reg .b32 %at, %lower;
    .reg .u64 %to, %bin;
    shl.b32 %lower, 1, $2;
    and.b32 %at, $1, %lower;
    setp.ne.b32 %fires, %at, 0;
    @!%fires bra DONE;
    sub.u32 %lower, %lower, 1;
    and.b32 %lower, %lower, $1;
    popc.b32 %at, %lower;
    add.u32 %at, %at, $3;
    setp.lt.u32 %fires, %at, $8;
    @!%fires bra DONE;
    add.u32 %lower, $2, $6;
    {_STORE.format(bin="$5", capacity="$8", records="$7", value="$4", latent="%lower")}
    DONE:
    mov.b32 $0, 0;
}}"""
"""Store {value, latent} at base + (bits of the word below the lane) where the lane's bit of the word is set.

Operands: word, lane, base, value, bin, first latent of the word, records, capacity.
"""

PLACE_CONSTRAINTS = "=r,r,r,r,r,r,r,l,r"
