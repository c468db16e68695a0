"""Self-supervised methods, one file a paper, readable as its algorithm box.

A method is an ``nn.Module`` with a nested ``Config`` (its settings on top of :class:`methods.config.Config`) and

* ``encoder``: what is kept after training;
* ``embed(images)``: what the loss compares (the collapse monitor watches it);
* ``forward(batch)``: from a :class:`methods.batch.Batch`, a list of tensors with one row a sample: everything that
  is done to a sample by itself, so that a large batch can come in small parts;
* ``loss(embeddings, batch)``: a scalar, from what ``forward`` gave for the batch; everything that looks at several
  samples, those of other processes among them. The batch has its labels here, but maybe not its views;
* ``before_step(step, total, warmup)``, if the learning rate follows something else than one warm-up and one cosine:
  what the highest one is multiplied by; methods that train in stages change to the next one there;
* ``after_backward()``, if gradients are changed before the optimiser's step: layers that stay as they are for a while;
* ``after_step(step, total)``, if there is something to do after the optimiser's step: momentum encoders;
* ``measure(data, folder)``, if there is more to know about it than evaluation knows: a dict of numbers; with a folder,
  after the last epoch, those that take longer too, and pictures;
* ``needs``, names of what the data must have beside images, such as ``("labels",)``; by default nothing. Those that
  need captions are given a tokenizer.

Everything else is shared: encoders, heads, augmentations, data, optimisers, schedule, the training loop, evaluation.
"""
