// Connected merging of equal concepts.
