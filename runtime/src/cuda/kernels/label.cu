// Concepts of segments and their labels at frame size.
