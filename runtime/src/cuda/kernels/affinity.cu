// Matches in the context frames.
