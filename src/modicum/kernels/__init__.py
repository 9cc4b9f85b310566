"""Pure tensor functions under everything else: packing, number grids, selection, second-order column sweeps.

Tensors in, tensors out: no model, no file, no printing. Device and dtype come from the tensors that are
given.
"""
