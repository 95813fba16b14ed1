"""Which structures make up each batch, and the loading of batches in the background."""
