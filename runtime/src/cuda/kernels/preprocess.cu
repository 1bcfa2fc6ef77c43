// Frames to the network's input.
