// The network's output to unit-length embeddings, pixel-major.
