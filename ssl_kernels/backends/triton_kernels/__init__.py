"""The Triton kernels of the waist, one concept a file. Importing this package imports Triton.

The matrix operations are those of ``backends.gpu``, for which ``kernels`` has the launches: ``rows`` makes operands
of embeddings, ``forward``, ``backward``, ``attend`` and ``softplus`` sweep the matrix, ``logits`` holds what the sweeps
must agree on, ``pairs`` which entries count, ``tiles`` is the one table of tile sizes. The other operations have a file
each.
"""
