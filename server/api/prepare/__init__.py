"""From a valid body to a request for the engine: token ids, sampling parameters, grammar."""
