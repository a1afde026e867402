"""The HTTP side of every request, whatever its endpoint: keys, limits, the log, errors, sending the answer."""
