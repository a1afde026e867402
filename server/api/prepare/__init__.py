"""From a valid body to what the engine is asked for: token ids, sampling, grammar."""
