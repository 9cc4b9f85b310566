"""DFloat11: Huffman codes for the exponents of floating-point weights, bit for bit reversible.

Of the 16 bits of a trained bfloat16 weight, sign and mantissa are noise, but the exponent carries 2.6 of its 8 bits.
Coding it leaves about 10.8 bits per weight, and the arrays beside the codes let a GPU or several cores decode a matrix
in parallel, just before it is used.

    70% Size, 100% Accuracy: Lossless LLM Compression via Dynamic-Length Float (NeurIPS 2025, arXiv 2504.11651)

The way of a group of weights, by file:

    encoder.encode   weights -> Encoded       (or None: store them as they are)
    layout.prepare   Encoded -> Prepared      the checks; every decoder asks for it
    decoder.decode   Prepared -> weights      on a processor or a GPU

`code` makes prefix codes, `luts` is the published form of a code, `tables` the forms that decode fast; `native`, `gpu`
and `stepwise` are one decoder each. Departures: codes are canonical (published ones are not, and are read as well),
float16 and float32 go through the same format with more raw bits, and a code that needs more tables than the format
has is flattened until it does not.
"""
