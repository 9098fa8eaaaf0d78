"""How the losses move the weights: optimizers, gradients of large batches and of each loss."""
