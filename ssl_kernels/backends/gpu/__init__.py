"""What the GPU backends share: the operations on matrices as passes over them, with the launches left to a backend.

``within``, ``across`` and ``pairwise`` are operations, made of the ``passes``, for which ``launch`` prepares a
call's rows; ``kernels`` says what a backend brings, and ``operations`` puts both together. Nothing here imports a
compiler or an extension by itself.
"""
