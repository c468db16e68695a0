"""Self-supervised methods, one file a paper: ``__init__`` names the parts, ``loss(views)`` is the algorithm box.

A method is an ``nn.Module`` with a nested ``Config`` (its settings on top of :class:`methods.config.Config`) and

* ``encoder``: what is kept after training;
* ``embed(images)``: what the loss compares (the collapse monitor watches it);
* ``loss(views)``: a scalar, from a list of augmented views of the same images.

Everything else is shared: encoders, heads, augmentations, data, optimisers, schedule, the training loop, evaluation.
"""
