// Masks at frame size.
