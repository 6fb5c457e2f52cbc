"""training-hub backends for machines without CUDA, registered in training-hub's ``AlgorithmRegistry`` from outside."""
