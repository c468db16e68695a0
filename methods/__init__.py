"""Self-supervised methods, one file a paper, readable as its algorithm box.

A method is an ``nn.Module`` with a nested ``Config`` (its settings on top of :class:`methods.config.Config`) and

* ``encoder``: what is kept after training;
* ``embed(images)``: what the loss compares (the collapse monitor watches it);
* ``forward(batch)``: from a :class:`methods.batch.Batch`, a list of tensors with one row a sample: everything that
  is done to a sample by itself, so that a large batch can come in small parts;
* ``loss(embeddings, batch)``: a scalar, from what ``forward`` gave for the batch; everything that looks at several
  samples, those of other processes among them. The batch has its labels here, but maybe not its views;
* ``after_step(step, total)``, if there is something to do after the optimiser's step: momentum encoders;
* ``needs``, names of what the data must have beside images, such as ``("labels",)``; by default nothing.

Everything else is shared: encoders, heads, augmentations, data, optimisers, schedule, the training loop, evaluation.
"""
