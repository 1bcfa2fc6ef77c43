"""The driver of scripts/bench. It needs nothing but Python itself; what it compares with lives in
an environment of its own (see `environment`)."""
