// Spherical k-means.
