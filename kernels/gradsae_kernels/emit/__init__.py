"""What fires, straight out of the encoder's matrix product: the GPU engine of both encoders.

plan.py            which variant with which blocks, by a small static table
tune.py            measure plans instead of looking one up
firing.py          when a pre-activation counts as firing
screen.py          a bf16 product as a sieve for the exact fp32 answer
fill.py            run a plan: bins of records, counted past their room
bins.py            bins to compressed rows, what did not fit computed again
triton_kernel.py   the products; ptx.py has the two appends that Triton has no words for
row_kernel.py      what runs before and after a product
"""
