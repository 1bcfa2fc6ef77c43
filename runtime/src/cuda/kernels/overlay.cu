// Drawing of results.
