"""The Triton kernels of the waist, one concept a file; ``launch`` is what the backend calls.

``rows`` prepares the embeddings, ``forward`` and ``backward`` sweep the similarity matrix, ``logits`` holds what both
sweeps must agree on, ``tiles`` is the one table of tile sizes. Importing this package imports Triton.
"""
