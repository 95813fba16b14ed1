"""Training: batches, optimisation, the training loop, checkpoints, pre-training, fine-tuning."""
