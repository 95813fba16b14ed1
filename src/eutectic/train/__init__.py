"""How a model is learned: batches, optimisation, one straight loop, checkpoints, pre-training, fine-tuning."""
