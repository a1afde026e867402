"""What every HTTP exchange passes, whatever its endpoint: keys, limits, the log, errors, the sending of an answer."""
